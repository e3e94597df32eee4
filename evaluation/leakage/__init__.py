"""Extraction, membership inference and probing: what is left of a forget set."""

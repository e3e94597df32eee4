"""Paraphrases and aliases that a served model writes."""

"""Thresholds with a guarantee, and what was measured of them."""

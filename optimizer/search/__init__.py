"""Zeroth-order search of the corruption (ECO, section 3.3)."""

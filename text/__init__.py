"""Text as a guard compares it: one normal form, one way to split words and sentences."""

"""Published experiments as forget and retain sets."""

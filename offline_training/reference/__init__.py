"""What the frozen model says of the examples, computed once and kept."""

"""Examples to tokens to batches."""

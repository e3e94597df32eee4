"""Multiple choice, as lm-evaluation-harness scores it."""

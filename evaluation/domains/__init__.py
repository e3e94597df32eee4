"""What a policy flags of prompts that have nothing to do with it, by domain."""

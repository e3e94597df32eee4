"""What a command says to the person in front of it: one error root, one progress, quiet libraries."""

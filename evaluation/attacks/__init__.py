"""Attacks on a guard: how many prompts get past it, and what leaks."""

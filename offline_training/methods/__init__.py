"""Unlearning methods: what each minimises, and its settings."""

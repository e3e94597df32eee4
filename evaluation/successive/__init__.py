"""Requests to forget that come one after another: what each addition does to those before it, and to the rest."""

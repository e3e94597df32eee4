"""Suites whose answers another model judges: Who's Harry Potter, and harmful requests."""

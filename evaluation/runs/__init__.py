"""A run of a suite: its folder, replies kept so that it can go on, and what is shown of it."""

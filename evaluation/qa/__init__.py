"""A forget set and a retain set of one's own: is the right answer still likely, and still said?"""

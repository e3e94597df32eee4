"""The names and facts of a forget set: learnt offline, found in a text at request time."""

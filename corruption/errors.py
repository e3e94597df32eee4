"""Errors of this package that are not plain misuse of an argument.

    CorruptionError
    └── CheckpointError     a checkpoint's input-embedding table cannot be found, read or trusted

Arguments of the wrong type or value raise TypeError or ValueError, as everywhere in Python.
"""

from console.errors import EcoError


class CorruptionError(EcoError):
    """Base of every error this package defines."""


class CheckpointError(CorruptionError):
    """A checkpoint cannot give its input-embedding rows; the message is one line and names the checkpoint."""

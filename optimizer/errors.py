"""Errors of the build itself and of the model server it may ask; the others are those of the parts it joins."""

from console.errors import EcoError

__all__ = ["AugmentationError", "BuildError"]


class BuildError(EcoError):
    """A policy cannot be built from what was given; one line that says what to change."""


class AugmentationError(EcoError):
    """A model server or a cache file cannot be used; one line that names the flag or file and what to do."""

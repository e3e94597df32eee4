"""The build's own error; the others are those of the parts it puts together."""

from console.errors import EcoError

__all__ = ["BuildError"]


class BuildError(EcoError):
    """A policy cannot be built from what was given; one line that says what to change."""

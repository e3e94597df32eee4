"""The demo's one error."""

from console.errors import EcoError

__all__ = ["DemoError"]


class DemoError(EcoError):
    """The demo cannot run, or did not show what it is there to show; one line that says why."""

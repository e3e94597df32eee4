"""The demo's one error."""

from console.errors import EcoError


class DemoError(EcoError):
    """The demo cannot run, or did not show what it is there to show; one line that says why."""

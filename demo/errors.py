"""The demo's one error."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """The demo cannot run, or did not show what it is there to show; one line that says why."""

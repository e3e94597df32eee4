"""What can stop `eco serve` before it serves. Each message is one line that says what to do."""

from console.errors import EcoError

__all__ = ["LaunchError", "SelfTestError"]


class LaunchError(EcoError):
    """The operator's flags, environment or files do not allow a guarded server. Exit code 2."""


class SelfTestError(LaunchError):
    """The engine does not treat corrupted rows as the guard needs it to. Nothing is served."""

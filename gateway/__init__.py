"""The guarded server: `vllm serve` with a guard inside, and what can stop it before it serves."""

from console.errors import EcoError

__all__ = ["LaunchError", "SelfTestError", "ServerDiedError"]


class LaunchError(EcoError):
    """The operator's flags, environment or files do not allow a guarded server. Exit code 2."""


class SelfTestError(LaunchError):
    """The engine does not treat corrupted rows as the guard needs it to. Nothing is served."""


class ServerDiedError(EcoError):
    """An engine or a front end of a running server died, and the server with it."""

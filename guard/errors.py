"""The guard's error tree. Every message is one line that names what is wrong and what to do."""

from console.errors import EcoError


class GuardError(EcoError):
    """Base of all errors raised by `guard`."""


class BundleError(GuardError):
    """A policy bundle is missing, incomplete, altered or does not follow the schema."""


class PolicyMismatchError(BundleError):
    """A valid bundle that belongs to another model, tokenizer width or encoder, or a name used twice."""


class SecretError(GuardError):
    """The secret file is unreadable, too short or readable by others."""


class ClassificationError(GuardError):
    """A prompt could not be classified and its policies say `on_error: reject`."""


class CorruptionFailedError(GuardError):
    """A flagged prompt could not be corrupted; it must not be served."""

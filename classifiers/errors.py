"""Every error this package raises on purpose, in one tree. Each message is one line a person can act on."""

from console.errors import EcoError


class ClassifierError(EcoError):
    """Base of all errors of this package."""


class EncoderError(ClassifierError):
    """An encoder cannot be found, exported, verified or run."""


class HeadError(ClassifierError):
    """A head file is damaged, hostile, or made for another encoder."""


class TrainingError(ClassifierError):
    """A head cannot be trained from the examples given."""

"""The errors of offline jobs: each message is one line that names the field and says what to do."""

from console.errors import EcoError


class JobError(EcoError):
    """A job cannot be started, or cannot go on."""


class SettingsError(JobError):
    """A setting is unknown, missing, out of bounds, or contradicts another."""


class DataError(JobError):
    """Examples cannot be read or cannot be trained on."""


class TrainingStoppedError(JobError):
    """Training stopped on its way (loss not a number, disk full); the last good checkpoint is kept."""

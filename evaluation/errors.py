"""What can be wrong with an evaluation. Each message is one line that names the field or flag and says what to do."""

from console.errors import EcoError


class EvaluationError(EcoError):
    """The root of the evaluation's errors, for the command line."""


class DataError(EvaluationError):
    """A suite's data cannot be used: missing columns, wrong types, logs of different questions."""


class TargetError(EvaluationError):
    """What is to be evaluated cannot be reached, or cannot do what a suite needs of it."""


class RunError(EvaluationError):
    """A run's folder cannot be used, or holds something else."""

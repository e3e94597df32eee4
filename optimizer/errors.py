"""What can be wrong with a policy build or a search; the other errors are those of the parts they join."""

from console.errors import EcoError


class BuildError(EcoError):
    """A policy cannot be built from what was given; one line that says what to change."""


class AugmentationError(EcoError):
    """A model server or a cache file cannot be used; one line that names the flag or file and what to do."""


class SearchError(EcoError):
    """A search cannot start or go on; one line that says what to change."""

"""What a corruption search asks of an objective, and what it gets back. No model, no search in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from corruption import CorruptionSpec

__all__ = ["Measurement", "Objective"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One corruption, measured on the forget set.

    Attributes:
        value: the metric's mean over examples and noise seeds.
        distance: what the search minimises, 0 or more: how far the corrupted model is from one that never learned.
        gap: `value` minus the retained value; above 0 the model still knows too much.
        standard_error: of `value`, over the noise seeds (0 for one seed or a method without noise).
        gibberish: 0 or more, how much worse formed the outputs are than the uncorrupted model's; 0 where the
            metric generates nothing.
        forward_passes: model forward passes spent (one per generated token and batch).
        seconds: wall time spent; for several specs measured in one call, their equal share.
    """

    value: float
    distance: float
    gap: float
    standard_error: float
    gibberish: float
    forward_passes: int
    seconds: float


class Objective(Protocol):
    """A metric of the corrupted model on the forget set, and its retained value."""

    @property
    def retained_value(self) -> float:
        """The metric of a model that never learned the forget set, or what stands in for it."""
        ...

    def measure(self, specs: Sequence[CorruptionSpec], noise_seeds: Sequence[int]) -> list[Measurement]:
        """One measurement for each spec, all in one batch. The same seeds give the same noise to every spec."""
        ...

    def part(self, size: int, seed: int) -> "Self | None":
        """The same objective on `size` of its examples, drawn with the seed, with their own retained value.

        None where it would save too little to be worth it.
        """
        ...

    def describe(self) -> Mapping[str, object]:
        """JSON values that identify the objective (metric, data digests, model): a resumed search checks them."""
        ...

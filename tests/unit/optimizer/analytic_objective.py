"""Objectives whose answer is known: a formula in place of a language model."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from corruption import CorruptionSpec
from optimizer.search.space import Measurement

Metric = Callable[[CorruptionSpec, int], float]


class AnalyticObjective:
    """Measures a formula `metric(spec, noise seed)`; the distance is |gap| unless `distance` says otherwise, and then
    it counts what is above the retained value alone unless it is `two_sided`.

    `screened` is what stands for a part of its examples. Keeps the calls it gets. Raises InterruptionError in place of
    the call that would bring it above `fails_after`.
    """

    def __init__(
        self,
        metric: Metric,
        retained_value: float,
        *,
        distance: Callable[[CorruptionSpec], float] | None = None,
        two_sided: bool = False,
        gibberish: Callable[[CorruptionSpec], float] = lambda spec: 0.0,
        fails_after: float = math.inf,
        name: str = "analytic",
        screened: "AnalyticObjective | None" = None,
    ) -> None:
        self.retained_value = retained_value
        self.calls: list[tuple[tuple[CorruptionSpec, ...], tuple[int, ...]]] = []
        self.screened = screened
        self._metric = metric
        self._distance = distance
        self._two_sided = two_sided
        self._gibberish = gibberish
        self._fails_after = fails_after
        self._name = name

    @property
    def measured(self) -> list[CorruptionSpec]:
        return [spec for specs, _ in self.calls for spec in specs]

    def measure(self, specs: Sequence[CorruptionSpec], noise_seeds: Sequence[int]) -> list[Measurement]:
        if len(self.measured) + len(specs) > self._fails_after:
            raise InterruptionError
        self.calls.append((tuple(specs), tuple(noise_seeds)))
        return [self._measurement(spec, noise_seeds) for spec in specs]

    def part(self, size: int, seed: int) -> "AnalyticObjective | None":
        return self.screened

    def describe(self) -> Mapping[str, object]:
        return {"metric": self._name}

    def _measurement(self, spec: CorruptionSpec, noise_seeds: Sequence[int]) -> Measurement:
        draws = [self._metric(spec, seed) for seed in noise_seeds]
        value = statistics.fmean(draws)
        gap = value - self.retained_value
        return Measurement(
            value=value,
            distance=abs(gap) if self._distance is None else self._distance(spec),
            gap=gap,
            standard_error=statistics.stdev(draws) / math.sqrt(len(draws)) if len(draws) > 1 else 0.0,
            gibberish=self._gibberish(spec),
            forward_passes=10,
            seconds=0.5,
            two_sided=self._distance is None or self._two_sided,
        )


class InterruptionError(Exception):
    """The process is gone."""


def falling(half_at: float, steepness: float = 2.0, floor: float = 0.0) -> Metric:
    """From 1 towards the floor as the strength grows, halfway at `half_at`; methods without strength give 0.9."""

    def metric(spec: CorruptionSpec, _seed: int) -> float:
        if spec.strength is None:
            return 0.9
        return floor + (1 - floor) / (1 + (scalar(spec) / half_at) ** steepness)

    return metric


def bowl(bottom: Sequence[float], depth: float = 0.0) -> Metric:
    """`depth` at the strength vector `bottom`, and above it the mean squared difference of the log-strengths."""
    logarithms = np.log(np.asarray(bottom))

    def metric(spec: CorruptionSpec, _seed: int) -> float:
        strengths = np.broadcast_to(np.asarray(spec.strength, dtype=float), logarithms.shape)
        return depth + float(np.mean((np.log(strengths) - logarithms) ** 2))

    return metric


def scalar(spec: CorruptionSpec) -> float:
    assert isinstance(spec.strength, float)
    return spec.strength

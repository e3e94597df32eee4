"""Search for the corruption strength: the one at which the model scores as one that never learned.

ECO (arXiv 2406.07933, section 3.3) minimises the distance between a metric of the corrupted model and its
retained value by zeroth-order steps. Strength is one number on a log scale, so a coarse sweep brackets it and
bisection closes in: derivative-free, deterministic, and every evaluation is kept for the report.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SWEEP", "Evaluation", "SearchResult", "search_strength"]

#: Half-decades from barely visible to far above any embedding's norm.
SWEEP: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One measured point: touched dimensions (None: all), strength, and the metric there."""

    dims: int | None
    strength: float
    metric: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The chosen point, why the search stopped, and everything it measured."""

    dims: int | None
    strength: float
    metric: float
    target: float
    reason: str
    evaluations: tuple[Evaluation, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def search_strength(
    measure: Callable[[int | None, float], float],
    target: float,
    *,
    dims: Sequence[int | None] = (None,),
    sweep: Sequence[float] = SWEEP,
    refine_steps: int = 4,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """Find the least dims and strength whose metric is at most `target`, or nearest to it.

    Args:
        measure: `(dims, strength) -> metric` of the corrupted model on the forget set; same noise at every call.
        target: the metric of a model that never learned the forget set, or what is tolerated above it.
        dims: candidates for the number of touched dimensions, None for all.
        sweep: strengths tried first, ascending.
        refine_steps: bisections (on a log scale) of the bracket that the sweep finds.

    Returns:
        The smallest strength at or below the target: more corruption than is needed makes gibberish. Where none
        reaches it, the smallest strength within one percent of the metric's range of the nearest.
    """
    evaluations: list[Evaluation] = []

    def at(count: int | None, strength: float) -> Evaluation:
        evaluation = Evaluation(count, strength, measure(count, strength))
        evaluations.append(evaluation)
        if on_evaluation is not None:
            on_evaluation(evaluation)
        return evaluation

    bracketed = False
    for count in dims:
        swept = [at(count, strength) for strength in sorted(sweep)]
        crossing = next((i for i, e in enumerate(swept) if e.metric <= target), None)
        if crossing is None or crossing == 0:
            continue
        bracketed = True
        low, high = swept[crossing - 1], swept[crossing]
        for _ in range(refine_steps):
            middle = at(count, math.sqrt(low.strength * high.strength))
            low, high = (low, middle) if middle.metric <= target else (middle, high)
    best = _nearest(evaluations, target)
    reason = (
        "the metric crosses the target; bisected to it"
        if bracketed
        else "the metric never crosses the target in the sweep; the nearest point is taken"
    )
    return SearchResult(best.dims, best.strength, best.metric, target, reason, tuple(evaluations))


def _nearest(evaluations: Sequence[Evaluation], target: float) -> Evaluation:
    """Forgetting comes first: whatever is at or below the target beats everything above it."""
    metrics = [evaluation.metric for evaluation in evaluations]
    closest = min(max(metric - target, 0.0) for metric in metrics)
    slack = 0.01 * (max(metrics) - min(metrics)) if closest > 0 else 0.0
    good = [e for e in evaluations if max(e.metric - target, 0.0) <= closest + slack]
    return min(good, key=lambda e: (e.strength, -(e.dims or math.inf)))

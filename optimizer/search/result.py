"""What a corruption search comes to: the corruption taken, whether it is good enough, and why the search stopped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from corruption import CorruptionSpec
from optimizer.search.judgement import ScalarPoint, choose, crossing, is_two_sided, scalar_points
from optimizer.search.space import SearchSettings, SearchSpace, label_of
from optimizer.search.trajectory import Evaluation

__all__ = ["NARROWEST_RATIO", "SearchResult", "conclude"]

#: Two strengths with less than this ratio between them are not told apart: what lies between is a jump.
NARROWEST_RATIO = 1.005


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The corruption taken, and everything that was measured.

    Attributes:
        best: the evaluation taken.
        reached: whether its distance is within the tolerance. Where it is not, `best` is what came nearest, and the
            search has not succeeded.
        floor: the metric's value there, where the tolerance was not reached; else None.
        reason: why the search stopped, in one line with the numbers.
    """

    best: Evaluation
    reached: bool
    floor: float | None
    reason: str
    retained_value: float
    evaluations: tuple[Evaluation, ...]
    space: SearchSpace
    settings: SearchSettings

    @property
    def spec(self) -> CorruptionSpec:
        return self.best.spec

    @property
    def forward_passes(self) -> int:
        return sum(evaluation.forward_passes for evaluation in self.evaluations)

    @property
    def seconds(self) -> float:
        """Time spent measuring, that of a resumed search's earlier runs included."""
        return math.fsum(evaluation.seconds for evaluation in self.evaluations)

    def as_dict(self) -> dict[str, Any]:
        """JSON values for a report. Strength vectors are given by their range, but for the one taken."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "reached": self.reached,
            "reason": self.reason,
            "retained_value": self.retained_value,
            "tolerance": self.settings.tolerance,
            "floor": self.floor,
            "best": _summary(self.best),
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "space": self.space.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "evaluations": [_summary(evaluation) for evaluation in self.evaluations],
        }


def conclude(
    evaluations: tuple[Evaluation, ...],
    space: SearchSpace,
    settings: SearchSettings,
    retained_value: float,
    budget_spent: str | None,
) -> SearchResult:
    """Take the best of what was measured on all examples. `budget_spent` says which budget ended the search, if any."""
    best = choose([e for e in evaluations if e.phase != "screen"], space, settings.tolerance)
    reached = best.distance <= settings.tolerance
    if reached:
        floor, reason = None, _why_taken(best, settings, retained_value)
    else:
        floor, reason = best.value, _why_missed(best, evaluations, space, settings, retained_value, budget_spent)
    if reached and budget_spent is not None:
        reason += f"; {budget_spent}"
    return SearchResult(best, reached, floor, reason, retained_value, evaluations, space, settings)


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Without the numbers of a vector: it has as many as the model is wide."""
    data = evaluation.model_dump(mode="json")
    strength = evaluation.spec.strength
    if isinstance(strength, tuple):
        data["spec"]["strength"] = {"least": min(strength), "greatest": max(strength), "count": len(strength)}
    return data


def _why_taken(best: Evaluation, settings: SearchSettings, retained_value: float) -> str:
    return (
        f"{label_of(best.spec)} brings the metric to {best.value:.4f}, at a distance of {best.distance:.4f} from the "
        f"retained value {retained_value:.4f}; the tolerance is {settings.tolerance:g}"
    )


def _why_missed(
    best: Evaluation,
    measured: Sequence[Evaluation],
    space: SearchSpace,
    settings: SearchSettings,
    retained_value: float,
    budget_spent: str | None,
) -> str:
    whole = [evaluation for evaluation in measured if evaluation.phase != "screen"]
    # What only the part was asked still says that it is far from enough, or far too much.
    known = {evaluation.spec for evaluation in whole}
    evaluations = [*whole, *(evaluation for evaluation in measured if evaluation.spec not in known)]
    nearest = f"{best.value:.4f} with {label_of(best.spec)}"
    if all(is_two_sided(evaluation) for evaluation in evaluations):
        wanted = f"the metric to {retained_value:.4f} ± {settings.tolerance:g}"
    else:
        wanted = f"the distance from the retained value {retained_value:.4f} to {settings.tolerance:g}"
        nearest += f", at a distance of {best.distance:.4f}"
    if budget_spent is not None:
        return f"{budget_spent} before anything brought {wanted}; the nearest found is {nearest}"
    sweeps = [p for c in space.candidates() if (p := scalar_points(c, evaluations, settings.tolerance))]
    crossed = [pair for c in space.candidates() if (pair := crossing(scalar_points(c, whole, settings.tolerance)))]
    if crossed:
        return _why_not_between(*min(crossed, key=_ratio), wanted, nearest)
    if sweeps and all(points[0].residual <= 0 for points in sweeps):
        return (
            f"strength {settings.min_strength:g} is already too much to bring {wanted}; the nearest found is "
            f"{nearest}; lower min_strength"
        )
    vectors = sum(evaluation.phase == "vector" for evaluation in evaluations)
    tried = f"no strength up to {settings.max_strength:g}" if sweeps else "none of the methods"
    tried += f" and none of {vectors} strength vectors" if vectors else ""
    return f"{tried} brings {wanted}; the floor found is {nearest}"


def _why_not_between(low: ScalarPoint, high: ScalarPoint, wanted: str, nearest: str) -> str:
    if _ratio((low, high)) >= NARROWEST_RATIO:
        return f"the steps ended before any brought {wanted}; the nearest found is {nearest}; raise refine_steps"
    return (
        f"no strength brings {wanted}: the metric jumps from {low.evaluation.value:.4f} to {high.evaluation.value:.4f} "
        f"between strengths {low.strength:.4g} and {high.strength:.4g}; the nearest found is {nearest}"
    )


def _ratio(pair: tuple[ScalarPoint, ScalarPoint]) -> float:
    return pair[1].strength / pair[0].strength

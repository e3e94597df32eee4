"""What the evaluations of a corruption search say: too little or too much, which to take, and why it stopped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from corruption import CorruptionSpec
from optimizer.search.evaluator import Evaluation
from optimizer.search.space import Candidate, SearchSettings, SearchSpace, label_of

#: Distances that differ by less than this share of the tolerance count as equal.
_EQUAL = 0.05
#: A gap below this share of the distance makes less than a tenth of its square, which is that of the gap and of the
#: rest.
_LEVEL = 0.3
#: Two strengths with less than this ratio between them are not told apart: what lies between is a jump.
NARROWEST_RATIO = 1.005


class ScalarPoint(NamedTuple):
    """An evaluation at one strength for all dimensions."""

    strength: float
    residual: float
    evaluation: Evaluation


def residual(evaluation: Evaluation, tolerance: float) -> float:
    """The distance with a sign: above 0 where more corruption is called for, below where less.

    Where the distance is two-sided, the gap. Where it counts only what is above the retained value of each example, the
    mean can lie below while some examples lie far above: that still calls for more.
    """
    if evaluation.two_sided or evaluation.distance <= tolerance:
        return evaluation.gap
    return evaluation.distance


def is_settled(evaluation: Evaluation, tolerance: float) -> bool:
    """Whether no better point needs to be looked for.

    The distance is within the tolerance with one standard error to spare (half the tolerance where the noise is
    larger), and not by forgetting far more than a model that never learned.
    """
    margin = min(evaluation.standard_error, tolerance / 2)
    return evaluation.distance <= tolerance - margin and evaluation.gap >= -tolerance


def is_done(evaluation: Evaluation, settings: SearchSettings) -> bool:
    """Whether a candidate's strength needs no further refinement.

    Where the nearest is wanted, once the gap is a small part of the distance. A distance between samples is as large as
    the gap where one lies beside the other, and larger where they are spread otherwise: that no strength takes away.
    """
    if settings.aim == "nearest":
        return abs(evaluation.gap) <= _LEVEL * evaluation.distance
    return is_settled(evaluation, settings.tolerance)


def scalar_points(candidate: Candidate, evaluations: Sequence[Evaluation], tolerance: float) -> list[ScalarPoint]:
    """A candidate's evaluations at one strength for all dimensions, weakest first."""
    found = [
        ScalarPoint(evaluation.spec.strength, residual(evaluation, tolerance), evaluation)
        for evaluation in evaluations
        if candidate.owns(evaluation.spec) and isinstance(evaluation.spec.strength, float)
    ]
    return sorted(found, key=lambda point: point.strength)


def crossing(points: Sequence[ScalarPoint]) -> tuple[ScalarPoint, ScalarPoint] | None:
    """The two neighbours at the least strength whose residuals differ in sign; None where all are alike."""
    for low, high in pairwise(points):
        if (low.residual > 0) != (high.residual > 0):
            return low, high
    return None


def promise(candidate: Candidate, evaluations: Sequence[Evaluation], tolerance: float) -> tuple[float, ...]:
    """Sorts candidates after the sweep, the most promising first.

    First those that come within the tolerance or cross the retained value, by the gibberish at their nearest point;
    then the others, by how near they come.
    """
    own = [evaluation for evaluation in evaluations if candidate.owns(evaluation.spec)]
    nearest = min(own, key=lambda e: e.distance)
    reaches = nearest.distance <= tolerance or crossing(scalar_points(candidate, own, tolerance)) is not None
    return (0.0, nearest.gibberish, nearest.distance) if reaches else (1.0, nearest.distance)


def choose(evaluations: Sequence[Evaluation], space: SearchSpace, settings: SearchSettings) -> Evaluation:
    """The evaluation to take: within the tolerance the least corruption; else, or with that aim, what came nearest.

    Least is: of each candidate the smallest strengths; of those the least gibberish in the outputs; of equals the
    smallest. Of points out of tolerance and equally near, one at or below the retained value: forgetting comes first.
    """
    tolerance = settings.tolerance
    settled = [e for e in evaluations if is_settled(e, tolerance)]
    within = settled or [e for e in evaluations if e.distance <= tolerance]
    if not within or settings.aim == "nearest":
        nearest = min(e.distance for e in evaluations) + _EQUAL * tolerance
        near = [e for e in evaluations if e.distance <= nearest]
        return min(near, key=lambda e: (e.gap > 0, e.phase == "vector", _size(e, space), e.gibberish, e.distance))
    least = [
        min(of_candidate, key=lambda e: _size(e, space))
        for candidate in space.candidates()
        if (of_candidate := [e for e in within if candidate.owns(e.spec)])
    ]
    return min(least, key=lambda e: (e.gibberish, _size(e, space)))


def _size(evaluation: Evaluation, space: SearchSpace) -> float:
    return next(c.size(evaluation.spec) for c in space.candidates() if c.owns(evaluation.spec))


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
    best = choose([e for e in evaluations if e.phase != "screen"], space, settings)
    reached = best.distance <= settings.tolerance
    if reached:
        floor = None
        reason = (
            f"{label_of(best.spec)} brings the metric to {best.value:.4f}, at a distance of {best.distance:.4f} from "
            f"the retained value {retained_value:.4f}; the tolerance is {settings.tolerance:g}"
        )
        reason += "" if budget_spent is None else f"; {budget_spent}"
    else:
        floor, reason = best.value, _why_missed(best, evaluations, space, settings, retained_value, budget_spent)
    return SearchResult(best, reached, floor, reason, retained_value, evaluations, space, settings)


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Without the numbers of a vector: it has as many as the model is wide."""
    data = evaluation.model_dump(mode="json")
    strength = evaluation.spec.strength
    if isinstance(strength, tuple):
        data["spec"]["strength"] = {"least": min(strength), "greatest": max(strength), "count": len(strength)}
    return data


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
    if all(math.isclose(e.distance, abs(e.gap), rel_tol=1e-9, abs_tol=1e-12) for e in evaluations):
        wanted = f"the metric to {retained_value:.4f} ± {settings.tolerance:g}"
    else:
        wanted = f"the distance from the retained value {retained_value:.4f} to {settings.tolerance:g}"
        nearest += f", at a distance of {best.distance:.4f}"
    if budget_spent is not None:
        return f"{budget_spent} before anything brought {wanted}; the nearest found is {nearest}"
    sweeps = [p for c in space.candidates() if (p := scalar_points(c, evaluations, settings.tolerance))]
    if settings.aim == "nearest" and is_done(best, settings):
        return (
            f"no strength brings {wanted}: the nearest found is {nearest}, where the metric is right and the examples "
            "are spread otherwise; give other methods or dims"
        )
    crossed = [pair for c in space.candidates() if (pair := crossing(scalar_points(c, whole, settings.tolerance)))]
    if crossed:
        low, high = min(crossed, key=lambda pair: pair[1].strength / pair[0].strength)
        if high.strength / low.strength >= NARROWEST_RATIO:
            return f"the steps ended before any brought {wanted}; the nearest found is {nearest}; raise refine_steps"
        return (
            f"no strength brings {wanted}: the metric jumps from {low.evaluation.value:.4f} to "
            f"{high.evaluation.value:.4f} between strengths {low.strength:.4g} and {high.strength:.4g}; "
            f"the nearest found is {nearest}"
        )
    if sweeps and all(points[0].residual <= 0 for points in sweeps):
        return (
            f"strength {settings.min_strength:g} is already too much to bring {wanted}; the nearest found is "
            f"{nearest}; lower min_strength"
        )
    vectors = sum(evaluation.phase == "vector" for evaluation in evaluations)
    tried = f"no strength up to {settings.max_strength:g}" if sweeps else "none of the methods"
    tried += f" and none of {vectors} strength vectors" if vectors else ""
    return f"{tried} brings {wanted}; the floor found is {nearest}"

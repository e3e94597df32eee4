"""What the evaluations of a corruption search say: too little or too much, good enough, and which to take."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from optimizer.search.space import Candidate, SearchSpace
from optimizer.search.trajectory import Evaluation

__all__ = ["ScalarPoint", "choose", "crossing", "is_settled", "is_two_sided", "promise", "residual", "scalar_points"]

#: Distances that differ by less than this share of the tolerance count as equal.
_EQUAL = 0.05


class ScalarPoint(NamedTuple):
    """An evaluation at one strength for all dimensions."""

    strength: float
    residual: float
    evaluation: Evaluation


def is_two_sided(evaluation: Evaluation) -> bool:
    """Whether the distance is |gap|, so that below the retained value is as far as above."""
    return math.isclose(evaluation.distance, abs(evaluation.gap), rel_tol=1e-9, abs_tol=1e-12)


def residual(evaluation: Evaluation, tolerance: float) -> float:
    """The distance with a sign: above 0 where more corruption is called for, below where less.

    Most distances are |gap|, and the sign is the gap's. Where a distance counts only what is above the retained value
    of each example, the mean can lie below while some examples lie far above: that still calls for more.
    """
    if evaluation.distance <= tolerance or is_two_sided(evaluation):
        return evaluation.gap
    return evaluation.distance


def is_settled(evaluation: Evaluation, tolerance: float) -> bool:
    """Whether no better point needs to be looked for.

    The distance is within the tolerance with one standard error to spare (half the tolerance where the noise is
    larger), and not by forgetting far more than a model that never learned.
    """
    margin = min(evaluation.standard_error, tolerance / 2)
    return evaluation.distance <= tolerance - margin and evaluation.gap >= -tolerance


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


def choose(evaluations: Sequence[Evaluation], space: SearchSpace, tolerance: float) -> Evaluation:
    """The evaluation to take: within the tolerance the least corruption, else what came nearest.

    Least is: of each candidate the smallest strengths; of those the least gibberish in the outputs; of equals the
    smallest. Of points out of tolerance and equally near, one at or below the retained value: forgetting comes first.
    """
    settled = [e for e in evaluations if is_settled(e, tolerance)]
    within = settled or [e for e in evaluations if e.distance <= tolerance]
    if not within:
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

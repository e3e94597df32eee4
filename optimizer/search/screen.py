"""The first look at strengths, on a part of the examples: where on the scale to measure everything.

What a part says costs a fraction and is off by as much as its examples differ from the rest. So it only ever says where
to look: a strength is taken for what it does to all examples. Rounds on ever more of the data are those of successive
halving (Jamieson and Talwalkar, arXiv 1502.07943).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from optimizer.search.directions import Bracket
from optimizer.search.evaluator import Evaluator
from optimizer.search.judgement import ScalarPoint, crossing, is_settled, residual, scalar_points
from optimizer.search.space import Candidate, SearchSettings

__all__ = ["likeliest_strength", "next_strength", "screen"]

#: Strengths measured in one call. Answers of heavily corrupted models ramble and cost the most: none are asked for
#: once a weaker corruption is too much.
_AT_ONCE = 3
#: The part's noise is larger than what lies between strengths nearer than this ratio.
_NEAR_ENOUGH = 1.2
_MOST_STEPS = 3
_OVERSHOOT = 1.5


def screen(evaluator: Evaluator, candidate: Candidate, settings: SearchSettings) -> bool:
    """Sweep upwards on a part of the examples to the first strength that is too much, and close in on the crossing.

    Returns whether there is one, or a strength that is just right.
    """
    strengths = settings.sweep_strengths()
    for start in range(0, len(strengths), _AT_ONCE):
        evaluator.measure([candidate.spec(strength) for strength in strengths[start : start + _AT_ONCE]], "screen")
        ends = crossing(screened_points(evaluator, candidate, settings))
        if ends is not None:
            _narrow(evaluator, candidate, settings, *ends)
            return True
    return any(is_settled(p.evaluation, settings.tolerance) for p in screened_points(evaluator, candidate, settings))


def _narrow(
    evaluator: Evaluator, candidate: Candidate, settings: SearchSettings, low: ScalarPoint, high: ScalarPoint
) -> None:
    bracket = Bracket(low.strength, high.strength, low.residual, high.residual)
    ends = (low.residual, high.residual)
    for _ in range(_MOST_STEPS):
        if bracket.ratio < _NEAR_ENOUGH or min(map(abs, ends)) <= settings.tolerance:
            return
        strength = settings.rounded(bracket.next_strength())
        (evaluation,) = evaluator.measure([candidate.spec(strength)], "screen")
        bracket = bracket.narrowed(strength, residual(evaluation, settings.tolerance))
        ends = (bracket.low_residual, bracket.high_residual)


def screened_points(evaluator: Evaluator, candidate: Candidate, settings: SearchSettings) -> list[ScalarPoint]:
    """What the part says, weakest first."""
    return scalar_points(candidate, evaluator.screened, settings.tolerance)


def likeliest_strength(curve: Sequence[ScalarPoint]) -> float:
    """Where the part's residual is 0, read off between two neighbours; if it never is, where it is nearest to 0."""
    found = _where(curve, 0.0, 0.0)
    return found if found is not None else min(curve, key=lambda point: abs(point.residual)).strength


def next_strength(
    curve: Sequence[ScalarPoint], measured: Sequence[ScalarPoint], settings: SearchSettings
) -> float | None:
    """Where to measure everything next, when all of `measured` are too little, or all too much; None: nowhere.

    The part's curve tells by how much a step changes the residual: it is moved up or down to go through the outermost
    point, and read off half as far again as where it would be 0, so that the two points have that between them; twice
    as far after each step that was too short. Where the curve does not go so far, the next strength of the sweep.
    """
    upwards = measured[0].residual > 0
    outermost = measured[-1 if upwards else 0]
    further = _OVERSHOOT * 2.0 ** (len(measured) - 1) * outermost.residual
    limits = (outermost.strength, math.inf) if upwards else (0.0, outermost.strength)
    found = _where(curve, _level(curve, outermost.strength) - further, *limits)
    sweep = settings.sweep_strengths()
    beyond = [s for s in sweep if (s > outermost.strength if upwards else s < outermost.strength)]
    if not upwards:
        beyond.reverse()
    steps = beyond if found is None else [settings.rounded(found), *beyond]
    return next((step for step in steps if step != outermost.strength), None)


def _level(curve: Sequence[ScalarPoint], strength: float) -> float:
    """The curve's residual at a strength, linear in its logarithm between points, and level beyond them."""
    for low, high in pairwise(curve):
        if low.strength <= strength <= high.strength:
            share = math.log(strength / low.strength) / math.log(high.strength / low.strength)
            return low.residual + share * (high.residual - low.residual)
    return curve[0 if strength < curve[0].strength else -1].residual


def _where(curve: Sequence[ScalarPoint], level: float, least: float, most: float = math.inf) -> float | None:
    """The least strength between `least` and `most` at which the curve has the level."""
    for low, high in pairwise(curve):
        if (low.residual > level) != (high.residual > level):
            share = (low.residual - level) / (low.residual - high.residual)
            strength = low.strength * math.exp(share * math.log(high.strength / low.strength))
            if least < strength < most:
                return strength
    return None

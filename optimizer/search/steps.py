"""Where to measure next: steps on a log-strength axis, and a first look along it on a part of the examples.

ECO (arXiv 2406.07933, section 3.3) descends by two-sided finite differences along a random unit direction. On one
axis there is only one direction; there a sign change of the residual is worth more than a slope.

What a part of the examples says costs a fraction and is off by as much as its examples differ from the rest. So it only
ever says where to look: a strength is taken for what it does to all examples. Rounds on ever more of the data are those
of successive halving (Jamieson and Talwalkar, arXiv 1502.07943).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.search.evaluator import Evaluator
from optimizer.search.result import ScalarPoint, crossing, is_settled, residual, scalar_points
from optimizer.search.space import Candidate, SearchSettings

#: An end of a bracket that stays this often is not moved by interpolation: the residual jumps. Halving is safe.
_STALE = 3
#: No step ends nearer to an end of its bracket than this share of the width.
_MARGIN = 0.05
#: Strengths measured in one call. Answers of heavily corrupted models ramble and cost the most: none are asked for
#: once a weaker corruption is too much.
_AT_ONCE = 3
#: The part's noise is larger than what lies between strengths nearer than this ratio.
_NEAR_ENOUGH = 1.2
_MOST_STEPS = 3
_OVERSHOOT = 1.5


class Bracket(NamedTuple):
    """Two strengths whose residuals differ in sign, and how many steps each end has stayed where it is."""

    low: float
    high: float
    low_residual: float
    high_residual: float
    low_age: int = 0
    high_age: int = 0

    @classmethod
    def between(cls, low: ScalarPoint, high: ScalarPoint) -> "Bracket":
        """About the crossing between two neighbours."""
        return cls(low.strength, high.strength, low.residual, high.residual)

    @property
    def ratio(self) -> float:
        return self.high / self.low

    def next_strength(self) -> float:
        """Regula falsi on log-strength, the Illinois way: the residual of an end that stays is halved at each step
        (Dowell and Jarratt, "A modified regula falsi method", BIT 11, 1971). Where it stays all the same, bisection.
        """
        width = math.log(self.ratio)
        if max(self.low_age, self.high_age) >= _STALE:
            share = 0.5
        else:
            low = abs(self.low_residual) * 0.5 ** max(self.low_age - 1, 0)
            high = abs(self.high_residual) * 0.5 ** max(self.high_age - 1, 0)
            share = low / (low + high)
        return self.low * math.exp(width * min(max(share, _MARGIN), 1 - _MARGIN))

    def narrowed(self, strength: float, residual: float) -> "Bracket":
        """The part of the bracket that still has the sign change, after the residual at `strength` is known."""
        if (residual > 0) == (self.low_residual > 0):
            age = 0 if self.high_age >= _STALE else self.high_age + 1
            return Bracket(strength, self.high, residual, self.high_residual, 0, age)
        age = 0 if self.low_age >= _STALE else self.low_age + 1
        return Bracket(self.low, strength, self.low_residual, residual, age, 0)


def halfway_to_neighbours(strengths: Sequence[float], centre: float) -> list[float]:
    """The two sides of a difference about `centre`: halfway, on the log scale, to the next strength on each side.

    `strengths` are in ascending order and hold `centre`; at the end of the list there is one side only.
    """
    index = strengths.index(centre)
    neighbours = [*strengths[max(index - 1, 0) : index], *strengths[index + 1 : index + 2]]
    return [math.sqrt(centre * neighbour) for neighbour in neighbours]


def unit_directions(dims: int, count: int, seed: int) -> NDArray[np.float64]:
    """(count, dims): random directions of length 1, each uniform on the sphere, orthogonal in blocks of `dims`.

    A direction at right angles to the ones before looks where they did not: the same decrease takes up to half the
    evaluations of independent draws.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    blocks = []
    for start in range(0, count, dims):
        columns, upper = np.linalg.qr(generator.standard_normal((dims, min(dims, count - start))))
        blocks.append((columns * np.sign(np.diag(upper))).T)  # with these signs Q is uniform (Mezzadri 2007)
    return np.concatenate(blocks) if blocks else np.empty((0, dims))


def screen(evaluator: Evaluator, candidate: Candidate, settings: SearchSettings) -> bool:
    """Sweep upwards on a part of the examples to the first strength that is too much, and close in on the crossing.

    Returns whether there is one, or a strength that is just right.
    """
    strengths = settings.sweep_strengths()
    for start in range(0, len(strengths), _AT_ONCE):
        evaluator.measure([candidate.spec(strength) for strength in strengths[start : start + _AT_ONCE]], "screen")
        ends = crossing(screened_points(evaluator, candidate, settings))
        if ends is None:
            continue
        bracket = Bracket.between(*ends)
        for _ in range(_MOST_STEPS):
            nearest = min(abs(bracket.low_residual), abs(bracket.high_residual))
            if bracket.ratio < _NEAR_ENOUGH or nearest <= settings.tolerance:
                break
            strength = settings.rounded(bracket.next_strength())
            (evaluation,) = evaluator.measure([candidate.spec(strength)], "screen")
            bracket = bracket.narrowed(strength, residual(evaluation, settings.tolerance))
        return True
    return any(is_settled(p.evaluation, settings.tolerance) for p in screened_points(evaluator, candidate, settings))


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

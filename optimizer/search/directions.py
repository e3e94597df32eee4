"""Where to measure next: steps on a log-strength axis, from numbers to numbers. Nothing is measured in here.

ECO (arXiv 2406.07933, section 3.3) descends by two-sided finite differences along a random unit direction. On one
axis there is only one direction; there a sign change of the residual is worth more than a slope.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bracket", "halfway_to_neighbours", "unit_directions"]

#: An end of a bracket that stays this often is not moved by interpolation: the residual jumps. Halving is safe.
_STALE = 3
#: No step ends nearer to an end of its bracket than this share of the width.
_MARGIN = 0.05


class Bracket(NamedTuple):
    """Two strengths whose residuals differ in sign, and how many steps each end has stayed where it is."""

    low: float
    high: float
    low_residual: float
    high_residual: float
    low_age: int = 0
    high_age: int = 0

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

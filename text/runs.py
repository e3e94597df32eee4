"""Array operations on runs, half-open ranges of positions: what stands in each, each kind of thing once."""

import numpy as np
from numpy.typing import NDArray

_Int = NDArray[np.int64]
_RADIX_KINDS = 1 << 16  # numpy sorts numbers below this in linear time


def spread(lows: _Int, highs: _Int) -> tuple[_Int, _Int]:
    """All positions of R runs one after the other, and the run that each is of."""
    counts = np.maximum(highs - lows, 0)
    run = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(run)) + (lows - (np.cumsum(counts) - counts))[run], run


def entries(lengths: _Int, which: _Int) -> tuple[_Int, _Int]:
    """For the lists `which` (H,) of lists that are laid end to end: where their entries stand, and which of the H each
    is of."""
    starts = (np.cumsum(lengths) - lengths)[which]
    return spread(starts, starts + lengths[which])


def occurrences(positions: _Int, kinds: _Int, runs: _Int) -> tuple[_Int, _Int]:
    """Each run (R, 2) with each kind of thing that stands in it, once: (H,) runs, ascending, and (H,) kinds.

    `positions` (N,) ascending, and the kind of thing (N,) at each.
    """
    small = kinds.astype(np.uint16) if len(kinds) and kinds.max() < _RADIX_KINDS else kinds
    order = np.argsort(small, kind="stable")
    same = kinds[order][1:] == kinds[order][:-1]
    previous = np.full(len(kinds), -1, dtype=np.int64)
    previous[order[1:][same]] = order[:-1][same]
    lows, highs = np.searchsorted(positions, runs.T)
    at, run = spread(lows, highs)
    first = previous[at] < lows[run]
    return run[first], kinds[at[first]]

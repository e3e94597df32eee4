"""Where a prompt's windows lie: over each stretch of content, and over the places where stretches meet.

A prompt is looked at in blocks of bounded length. A block ends where a window begins, so the windows of a long
stretch do not depend on the blocks, and a conversation's earlier turns are the same blocks in its next one.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.classification import Looked, WindowClassifier
from guard.segments import Template
from text.reading import WINDOW_UNITS
from text.runs import spread

BLOCK_TOKENS = 2048
"""Longest block, and how much is looked at in one piece of work: some milliseconds."""
_RUN_UNITS = 4 * WINDOW_UNITS  # around stretches that are shorter than a window, as far as one block of glue reaches


@dataclass(frozen=True, slots=True)
class Window:
    """Content positions that are classified together, in prompt order."""

    positions: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Windows of a block: their numbers, ascending. `positions` (T,) are those of the block's tokens in the prompt."""

    block: Looked
    windows: Sequence[int]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.windows)

    def each(self, token_ids: Sequence[int]) -> Iterator[Window]:
        """The windows themselves."""
        return (self.of(token_ids, index) for index in range(len(self.windows)))

    def of(self, token_ids: Sequence[int], index: int) -> Window:
        """One of them."""
        start, end = self.block.ranges[self.windows[index]].tolist()
        positions = tuple(self.positions[start:end].tolist())
        return Window(positions, tuple(token_ids[position] for position in positions))


@dataclass(slots=True)
class Content:
    """What of a prompt is content: positions, the units that begin at each, and where stretches begin."""

    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    stretches: NDArray[np.int64]
    """(C,) the number of the stretch that each position is of."""


def local_windows(
    template: Template, classifier: WindowClassifier, ids: NDArray[np.int64]
) -> Iterator[tuple[list[Placed], Content]]:
    """The windows within each stretch of content of a prompt (T,), block by block; after each some of them, and what
    they lie in."""
    batch: list[tuple[int, range]] = []
    tokens = 0
    for number, stretch in enumerate(template.segments(ids)):
        if len(stretch) > BLOCK_TOKENS:
            yield from _blocks(classifier, ids, stretch, number)
            continue
        if batch and tokens + len(stretch) > BLOCK_TOKENS:
            yield _looked(classifier, ids, batch)
            batch, tokens = [], 0
        batch.append((number, stretch))
        tokens += len(stretch)
    if batch:
        yield _looked(classifier, ids, batch)


def _looked(
    classifier: WindowClassifier, ids: NDArray[np.int64], batch: Sequence[tuple[int, range]]
) -> tuple[list[Placed], Content]:
    blocks = classifier.look([ids[part.start : part.stop] for _, part in batch])
    numbers, lows, highs = np.array([(number, part.start, part.stop) for number, part in batch]).T
    positions, of = spread(lows, highs)
    placed = []
    end = 0
    for block in blocks:
        start, end = end, end + len(block.units)
        placed.append(Placed(block, range(len(block.ranges)), positions[start:end]))
    return placed, Content(positions, np.concatenate([block.units for block in blocks]), numbers[of])


def _blocks(
    classifier: WindowClassifier, ids: NDArray[np.int64], stretch: range, number: int
) -> Iterator[tuple[list[Placed], Content]]:
    start = stretch.start
    while start < stretch.stop:
        stop = min(start + BLOCK_TOKENS, stretch.stop)
        (block,) = classifier.look([ids[start:stop]])
        windows, end = len(block.ranges), stop - start
        if stop < stretch.stop and windows > 1 and block.ranges[-1, 0] > 0:
            # Its last window may be cut short here: it is the first of the next block.
            windows, end = windows - 1, int(block.ranges[-1, 0])
        positions = np.arange(start, stop)
        yield (
            [Placed(block, range(windows), positions)],
            Content(positions[:end], block.units[:end], np.full(end, number)),
        )
        start += end


def glued_windows(
    classifier: WindowClassifier, ids: NDArray[np.int64], contents: Sequence[Content], hit: Collection[int]
) -> Iterator[list[Placed]]:
    """The windows in which stretches meet, some at a time. Stretches are the client's to cut: a special token inside a
    word splits it (`Har<|im_end|>ry`), so what stands on both sides of a cut is classified together as well.

    Positions in `hit` will be masked, and are no more in question: a conversation that names a forgotten person once
    does not lose its other turns.
    """
    positions, units, stretches = (
        np.concatenate([getattr(content, name) for content in contents] or [np.empty(0, dtype=np.int64)])
        for name in ("positions", "units", "stretches")
    )
    if hit:
        kept = ~np.isin(positions, list(hit))
        positions, units, stretches = positions[kept], units[kept], stretches[kept]
    cuts = np.flatnonzero(stretches[1:] != stretches[:-1]) + 1
    content = ids[positions]
    batch: list[tuple[int, int, int, int]] = []
    tokens = 0
    for run in _runs(cuts, units):
        if batch and tokens + run[1] - run[0] > BLOCK_TOKENS:
            yield _across(classifier, content, positions, cuts, batch)
            batch, tokens = [], 0
        batch.append(run)
        tokens += run[1] - run[0]
    if batch:
        yield _across(classifier, content, positions, cuts, batch)


def _runs(cuts: NDArray[np.int64], units: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """Stretches of C content tokens, as far around cuts as a window reaches, and which of the cuts each is for: first
    and last token, first and last cut, half-open."""
    if not len(cuts):
        return
    before = np.concatenate([[0], np.cumsum(units)])  # (C + 1,)
    starts = np.flatnonzero(units)  # a block begins where a chunk does, or it would begin within a word
    lows = np.searchsorted(before, before[cuts] - WINDOW_UNITS)
    begins = np.append(starts, len(units))[np.searchsorted(starts, lows)]
    firsts = np.minimum(np.where(begins < len(units), begins, lows), cuts)
    highs = np.searchsorted(before, before[cuts] + WINDOW_UNITS, side="right")
    lasts = np.minimum(np.maximum(highs, cuts + 1), len(units)).tolist()
    following = np.searchsorted(before[cuts], before[firsts] + _RUN_UNITS, side="right").tolist()
    index = 0
    while index < len(cuts):
        end = max(index + 1, following[index])
        yield int(firsts[index]), lasts[end - 1], index, end
        index = end


def _across(
    classifier: WindowClassifier,
    content: NDArray[np.int64],
    positions: NDArray[np.int64],
    cuts: NDArray[np.int64],
    runs: Sequence[tuple[int, int, int, int]],
) -> list[Placed]:
    """The windows of runs that have one of the run's own cuts within."""
    blocks = classifier.look([content[first:last] for first, last, _, _ in runs])
    windows = np.array([len(block.ranges) for block in blocks])
    firsts, _, lows, highs = (np.repeat(column, windows) for column in np.array(runs).T)
    starts, ends = (np.concatenate([block.ranges for block in blocks]) + firsts[:, None]).T
    left = np.clip(np.searchsorted(cuts, starts, side="right"), lows, highs)
    right = np.clip(np.searchsorted(cuts, ends), lows, highs)
    across = (left < right).tolist()
    placed = []
    end = 0
    for block, (first, last, _, _) in zip(blocks, runs, strict=True):
        start, end = end, end + len(block.ranges)
        if own := [window for window, crosses in enumerate(across[start:end]) if crosses]:
            placed.append(Placed(block, own, positions[first:last]))
    return placed

"""Where a prompt's windows lie: over each stretch of content, and over the places where stretches meet.

A prompt is looked at in blocks of bounded length. A block ends where a window begins, so the windows of a long
stretch do not depend on the blocks, and a conversation's earlier turns are the same blocks in its next one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.classification import Looked, WindowClassifier
from guard.segments import Template
from text.reading import WINDOW_UNITS

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
    """A window of a block: `positions` are the block's, in the prompt."""

    block: Looked
    window: int
    positions: Sequence[int]

    def of(self, token_ids: Sequence[int]) -> Window:
        """The window itself."""
        start, end = self.block.ranges[self.window].tolist()
        positions = tuple(self.positions[start:end])
        return Window(positions, tuple(token_ids[position] for position in positions))


@dataclass(slots=True)
class Content:
    """What of a prompt is content: positions, the units that begin at each, and where stretches begin."""

    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    stretches: NDArray[np.int64]
    """(C,) the number of the stretch that each position is of."""


def local_windows(
    template: Template, classifier: WindowClassifier, token_ids: Sequence[int]
) -> Iterator[tuple[list[Placed], Content]]:
    """The windows within each stretch of content, block by block; after each some of them, and what they lie in."""
    batch: list[tuple[int, range]] = []
    tokens = 0
    for number, stretch in enumerate(template.segments(token_ids)):
        if len(stretch) > BLOCK_TOKENS:
            yield from _blocks(classifier, token_ids, stretch, number)
            continue
        if batch and tokens + len(stretch) > BLOCK_TOKENS:
            yield _looked(classifier, token_ids, batch)
            batch, tokens = [], 0
        batch.append((number, stretch))
        tokens += len(stretch)
    if batch:
        yield _looked(classifier, token_ids, batch)


def _looked(
    classifier: WindowClassifier, token_ids: Sequence[int], batch: Sequence[tuple[int, range]]
) -> tuple[list[Placed], Content]:
    blocks = classifier.look([tuple(token_ids[part.start : part.stop]) for _, part in batch])
    placed = [
        Placed(block, window, part)
        for (_, part), block in zip(batch, blocks, strict=True)
        for window in range(len(block.ranges))
    ]
    positions = np.concatenate([np.arange(part.start, part.stop) for _, part in batch])
    numbers = np.repeat([number for number, _ in batch], [len(part) for _, part in batch])
    return placed, Content(positions, np.concatenate([block.units for block in blocks]), numbers)


def _blocks(
    classifier: WindowClassifier, token_ids: Sequence[int], stretch: range, number: int
) -> Iterator[tuple[list[Placed], Content]]:
    start = stretch.start
    while start < stretch.stop:
        part = range(start, min(start + BLOCK_TOKENS, stretch.stop))
        (block,) = classifier.look([tuple(token_ids[part.start : part.stop])])
        windows, end = len(block.ranges), len(part)
        if part.stop < stretch.stop and windows > 1 and block.ranges[-1, 0] > 0:
            # Its last window may be cut short here: it is the first of the next block.
            windows, end = windows - 1, int(block.ranges[-1, 0])
        placed = [Placed(block, window, part) for window in range(windows)]
        positions = np.arange(start, start + end)
        yield placed, Content(positions, block.units[:end], np.full(end, number))
        start += end


def glued_windows(
    classifier: WindowClassifier, token_ids: Sequence[int], contents: Sequence[Content], hit: set[int]
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
    before = np.concatenate([[0], np.cumsum(units)])  # (C + 1,)
    starts = np.flatnonzero(units)  # a block begins where a chunk does, or it would begin within a word
    index = 0
    while index < len(cuts):
        low = np.searchsorted(before, before[cuts[index]] - WINDOW_UNITS, side="left")
        first = int(starts[np.searchsorted(starts, low)]) if len(starts) and starts[-1] >= low else int(low)
        first = min(first, int(cuts[index]))
        following = index + 1
        while following < len(cuts) and before[cuts[following]] <= before[first] + _RUN_UNITS:
            following += 1
        own = cuts[index:following]
        last = int(np.searchsorted(before, before[own[-1]] + WINDOW_UNITS, side="right"))
        last = min(max(last, int(own[-1]) + 1), len(positions))
        run = positions[first:last].tolist()
        (block,) = classifier.look([tuple(token_ids[position] for position in run)])
        starts_at, ends_at = (block.ranges + first).T
        across = np.flatnonzero(np.searchsorted(own, starts_at, side="right") < np.searchsorted(own, ends_at)).tolist()
        yield [Placed(block, window, run) for window in across]
        index = following

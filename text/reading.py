"""A text as it is classified: normalised once, split into words once, cut into overlapping windows once.

The smallest unit is a chunk, a run of characters without white space. What is known of a chunk (normalised form,
words, length) is kept, so that reading prose is mostly looking up. Nothing here depends on a policy or a model.
"""

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from text.names import SENTENCE_END, WORD, Word, fold
from text.normalise import normalise

WINDOW_UNITS, OVERLAP_UNITS = 64, 32
"""Length of a window and overlap of neighbours, in units. A window this short is not diluted by the text around one
forbidden question; whatever is no longer than the overlap is whole in some window."""

_CHUNK = re.compile(r"(\s*)(\S{1,40})")
_UNIT_LETTERS = 5
_MAX_CHUNK_UNITS = 20
_CACHED_CHUNKS = 1 << 16
# Scripts without spaces between words, where an encoder reads every character as a token of its own.
_IDEOGRAPH = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U0001f000-\U0003ffff]")
_PIECE = re.compile(rf"(?:(?!{_IDEOGRAPH.pattern})[^\W_])+|[^\s]")


class Chunk(NamedTuple):
    """A run of characters without white space, normalised."""

    text: str
    units: int
    """About how many tokens an encoder makes of it: a word of up to five letters, a sign and an ideograph are one
    each. Word pieces are not counted, so that reading needs no tokenizer."""
    words: tuple[str, ...]
    """As compared (`text.names.fold`)."""
    capitals: tuple[bool, ...]
    gaps: tuple[str, ...]
    """What stands before the first word, between the words and behind the last."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """C chunks of N words in all, cut into W windows.

    Attributes:
        chunks: in order.
        before: for each chunk the white space before it: a line break, a space, or nothing within a long run.
        spans: (C, 2) characters of the text as given that each chunk stands for.
        windows: (W, 2) half-open ranges of chunks.
        words, capitals: of all chunks (N).
        firsts: (C + 1) words before each chunk.
    """

    chunks: list[Chunk]
    before: list[str]
    spans: NDArray[np.int64]
    windows: NDArray[np.int64]
    words: list[str]
    capitals: list[bool]
    firsts: NDArray[np.int64]

    @property
    def word_windows(self) -> NDArray[np.int64]:
        """(W, 2) half-open ranges of words."""
        return self.firsts[self.windows]

    def text(self, window: int) -> str:
        """A window as an encoder gets it."""
        start, end = self.windows[window].tolist()
        parts = itertools.chain.from_iterable(
            (space, chunk.text) for space, chunk in zip(self.before[start:end], self.chunks[start:end], strict=True)
        )
        return "".join(parts).strip()

    def opens(self, word: int, first: int) -> bool:
        """Whether a word begins a sentence, where a capital says nothing, in a text that begins with word `first`."""
        if word == first:
            return True
        chunk = int(np.searchsorted(self.firsts, word, side="right")) - 1
        place = word - int(self.firsts[chunk])
        gap = self.chunks[chunk].gaps[place]
        while place == 0 and chunk > 0:
            gap = self.before[chunk] + gap
            chunk -= 1
            if self.chunks[chunk].words:
                gap = self.chunks[chunk].gaps[-1] + gap
                break
            gap = self.chunks[chunk].text + gap
        if not SENTENCE_END.search(gap):
            return False
        after_initial = len(self.words[word - 1]) <= 2 and self.capitals[word - 1] and gap.strip() in (".", "")
        return not after_initial

    def word(self, word: int, first: int) -> Word:
        """One word as `text.names.split_words` gives it for a text that begins with word `first`; without its place."""
        return Word(self.words[word], 0, 0, self.capitals[word], self.opens(word, first))


def read(text: str) -> Reading:
    """Read a text of any length; one window where it is short enough, none where nothing of it is visible."""
    return read_each([text])[0]


def read_each(texts: Sequence[str]) -> tuple[Reading, NDArray[np.int64]]:
    """Several texts as one reading, no window reaching from one into the next; `spans` are as in all texts laid end to
    end. And (T + 1,) the windows before each text."""
    chunks: list[Chunk] = []
    before: list[str] = []
    spans: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
    windows: list[tuple[int, int]] = []
    counts = [0]
    offset = 0
    for text in texts:
        first = len(chunks)
        if found := _CHUNK.findall(text.rstrip()):  # where only white space is left, every start would be tried
            spaces, raws = zip(*found, strict=True)
            ends = np.array([offset, *map(len, itertools.chain.from_iterable(found))], dtype=np.int64)
            placed = np.cumsum(ends)[1:].reshape(-1, 2)  # where white space ends a chunk begins
            spaced = [" " if space == " " else "\n" if "\n" in space else " " if space else "" for space in spaces]
            parts = list(map(chunks_of, raws))
            several = [len(own) for own in parts]
            if several.count(1) != len(several):
                spaced = [
                    space if part == 0 else ""
                    for space, own in zip(spaced, parts, strict=True)
                    for part in range(len(own))
                ]
                placed = np.repeat(placed, several, axis=0)
            chunks += itertools.chain.from_iterable(parts)
            before += spaced
            spans.append(placed)
            windows += _cut([chunk.units for chunk in chunks[first:]], first)
        counts.append(len(windows))
        offset += len(text)
    reading = _reading(chunks, before, np.concatenate(spans), np.array(windows, dtype=np.int64).reshape(-1, 2))
    return reading, np.array(counts, dtype=np.int64)


def read_all(texts: Sequence[str]) -> Reading:
    """As `read_each`, but every text is one window, however long it is."""
    reading, counts = read_each(texts)
    ends = np.zeros(len(counts), dtype=np.int64)
    ends[1:] = np.concatenate([[0], reading.windows[:, 1]])[counts[1:]]  # of a text's last window, its last chunk
    ends = np.maximum.accumulate(ends)
    return dataclasses.replace(reading, windows=np.stack([ends[:-1], ends[1:]], axis=1))


def windows_of(text: str) -> list[str]:
    """A text's windows, normalised; one at least."""
    reading = read(text)
    return [reading.text(window) for window in range(len(reading.windows))] or [""]


def _reading(chunks: list[Chunk], before: list[str], spans: NDArray[np.int64], windows: NDArray[np.int64]) -> Reading:
    of_words = [chunk.words for chunk in chunks]
    firsts = np.zeros(len(chunks) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, of_words), dtype=np.int64, count=len(chunks)), out=firsts[1:])
    words = list(itertools.chain.from_iterable(of_words))
    capitals = list(itertools.chain.from_iterable([chunk.capitals for chunk in chunks]))
    return Reading(chunks, before, spans, windows, words, capitals, firsts)


def _cut(units: Sequence[int], offset: int) -> list[tuple[int, int]]:
    """Overlapping windows of chunks that hold `WINDOW_UNITS` each, none of more than `_MAX_CHUNK_UNITS`; the first
    chunk is number `offset`."""
    sums = [0, *itertools.accumulate(units)]
    count, windows, start = len(units), [], 0
    while start < count:
        end = bisect.bisect_right(sums, sums[start] + WINDOW_UNITS) - 1
        windows.append((offset + start, offset + end))
        if end >= count:
            break
        start = max(bisect.bisect_left(sums, sums[end] - OVERLAP_UNITS), start + 1)
    return windows


@functools.lru_cache(maxsize=_CACHED_CHUNKS)
def chunks_of(raw: str) -> tuple[Chunk, ...]:
    """What a run of characters without white space says: usually one chunk; none where all of it is invisible,
    several where it is long or a compatibility form of more."""
    chunks = []
    for part in normalise(raw).split():
        if part.isascii() and part.isalpha():  # most of all chunks
            chunks.append(_chunk(part, _letters(len(part))))
            continue
        start = units = end = 0
        for piece in _PIECE.finditer(part):
            own = _letters(len(piece.group()))
            if units and units + own > _MAX_CHUNK_UNITS:
                chunks.append(_chunk(part[start : piece.start()], units))
                start, units = piece.start(), 0
            units += own
            end = piece.end()
        if end > start:
            chunks.append(_chunk(part[start:], units))
    return tuple(chunks)


def _letters(count: int) -> int:
    return -(-count // _UNIT_LETTERS)


def _chunk(text: str, units: int) -> Chunk:
    words, capitals, gaps, last = [], [], [], 0
    for found in WORD.finditer(text):
        if folded := fold(found.group()):
            words.append(folded)
            capitals.append(found.group()[0].isupper() or found.group()[0].isdigit())
            gaps.append(text[last : found.start()])
            last = found.end()
    return Chunk(text, units, tuple(words), tuple(capitals), (*gaps, text[last:]))

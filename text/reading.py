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
from text.runs import entries, spread

WINDOW_UNITS, OVERLAP_UNITS = 64, 32
"""Length of a window and overlap of neighbours, in units. A window this short is not diluted by the text around one
forbidden question; whatever is no longer than the overlap is whole in some window."""

_LONGEST = 40  # letters of a chunk: of an endless run of them each is read by itself
_UNIT_LETTERS = 5
_MAX_CHUNK_UNITS = 20
_CACHED_CHUNKS = 1 << 16
_LAST_WHITE = 0x3000
# Scripts without spaces between words, where an encoder reads every character as a token of its own.
_IDEOGRAPH = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U0001f000-\U0003ffff]")
_PIECE = re.compile(rf"(?:(?!{_IDEOGRAPH.pattern})[^\W_])+|[^\s]")
# One English word, with signs around it.
_PLAIN = re.compile(r"([!-/:-@\[-`{-~]*)([A-Za-z]+)([!-/:-@\[-`{-~]*)")


class Chunk(NamedTuple):
    """A run of characters without white space, normalised."""

    text: str
    units: int
    """About how many tokens an encoder makes of it: a word of up to five letters, a sign and an ideograph are one
    each. Word pieces are not counted, so that reading needs no tokenizer."""
    words: tuple[str, ...]
    """As compared (`text.names.fold`)."""
    capitals: tuple[bool, ...]
    """Which of them are written with a capital or begin with a digit."""
    gaps: tuple[str, ...]
    """What stands before the first word, between the words and behind the last."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """C chunks of N words in all, cut into W windows. What repeats is kept once: most of a text is a few words.

    Attributes:
        chunk_kinds: the different chunks.
        chunk_at: (C,) which of them each chunk is.
        before: (C,) the white space before each chunk: a line break, a space, or nothing within a long run.
        spans: (C, 2) characters of the text as given that each chunk stands for.
        units: (C,) of each chunk.
        windows: (W, 2) half-open ranges of chunks.
        firsts: (C + 1,) words before each chunk.
        word_kinds: the D different words.
        word_at: (N,) which of them each word is.
    """

    chunk_kinds: list[Chunk]
    chunk_at: NDArray[np.int64]
    before: Sequence[str]
    spans: NDArray[np.int64]
    units: NDArray[np.int64]
    windows: NDArray[np.int64]
    firsts: NDArray[np.int64]
    word_kinds: list[str]
    word_at: NDArray[np.int64]

    @property
    def chunks(self) -> list[Chunk]:
        """All C in order."""
        return [self.chunk_kinds[kind] for kind in self.chunk_at.tolist()]

    @property
    def words(self) -> list[str]:
        """All N in order."""
        return [self.word_kinds[kind] for kind in self.word_at.tolist()]

    @property
    def word_windows(self) -> NDArray[np.int64]:
        """(W, 2) half-open ranges of words."""
        return self.firsts[self.windows]

    def within(self, windows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """The words of some windows: the different ones, which of them each word is (N,), and the range of words
        (W, 2) that each window has."""
        runs = self.word_windows[windows]
        at, _ = spread(runs[:, 0], runs[:, 1])
        kinds, place = np.unique(self.word_at[at], return_inverse=True)
        lengths = runs[:, 1] - runs[:, 0]
        ends = np.cumsum(lengths)
        return [self.word_kinds[kind] for kind in kinds.tolist()], place, np.stack([ends - lengths, ends], axis=1)

    def text(self, window: int) -> str:
        """A window as an encoder gets it."""
        start, end = self.windows[window].tolist()
        parts = (self.before[chunk] + self._chunk(chunk).text for chunk in range(start, end))
        return "".join(parts).strip()

    def word(self, word: int, first: int) -> Word:
        """One word as `text.names.split_words` gives it for a text that begins with word `first`; without its place."""
        return Word(self._word(word), 0, 0, self.capital(word), self._opens(word, first))

    def capital(self, word: int) -> bool:
        """Whether a word is written with a capital, or begins with a digit."""
        chunk, place = self._place(word)
        return self._chunk(chunk).capitals[place]

    def _chunk(self, chunk: int) -> Chunk:
        return self.chunk_kinds[int(self.chunk_at[chunk])]

    def _word(self, word: int) -> str:
        return self.word_kinds[int(self.word_at[word])]

    def _place(self, word: int) -> tuple[int, int]:
        """A word's chunk, and which of the chunk's words it is."""
        chunk = int(np.searchsorted(self.firsts, word, side="right")) - 1
        return chunk, word - int(self.firsts[chunk])

    def gap(self, word: int) -> str:
        """What stands between a word and the one before it, white space in short."""
        chunk, place = self._place(word)
        gap = self._chunk(chunk).gaps[place]
        while place == 0 and chunk > 0:
            gap = self.before[chunk] + gap
            chunk -= 1
            before = self._chunk(chunk)
            if before.words:
                gap = before.gaps[-1] + gap
                break
            gap = before.text + gap
        return gap

    def _opens(self, word: int, first: int) -> bool:
        """Whether a word begins a sentence, where a capital says nothing."""
        if word == first:
            return True
        gap = self.gap(word)
        if not SENTENCE_END.search(gap):
            return False
        after_initial = len(self._word(word - 1)) <= 2 and self.capital(word - 1) and gap.strip() in (".", "")
        return not after_initial


def read(text: str) -> Reading:
    """Read a text of any length; one window where it is short enough, none where nothing of it is visible."""
    return read_each([text])[0]


def read_each(texts: Sequence[str]) -> tuple[Reading, NDArray[np.int64]]:
    """Several texts as one reading, no window reaching from one into the next; `spans` are as in all texts laid end to
    end. And (T + 1,) the windows before each text."""
    raws, before, spans, texts_of = _split(texts)
    numbers = {raw: number for number, raw in enumerate(dict.fromkeys(raws))}
    raw_at = np.fromiter(map(numbers.__getitem__, raws), dtype=np.int64, count=len(raws))
    chunks = list(map(chunks_of, numbers))
    chunk_at, of_raw = entries(np.array(list(map(len, chunks)), dtype=np.int64), raw_at)
    if len(chunk_at) != len(raws) or (of_raw[1:] == of_raw[:-1]).any():
        first = np.concatenate([[True], of_raw[1:] != of_raw[:-1]])[: len(of_raw)]
        before = [before[raw] if opens else "" for raw, opens in zip(of_raw.tolist(), first.tolist(), strict=True)]
        spans, texts_of = spans[of_raw], texts_of[of_raw]
    kinds = list(itertools.chain.from_iterable(chunks))
    units_of, words_of = [chunk.units for chunk in kinds], [chunk.words for chunk in kinds]
    units = np.array(units_of, dtype=np.int64)[chunk_at]
    said = list(itertools.chain.from_iterable(words_of))
    word_numbers = {word: number for number, word in enumerate(dict.fromkeys(said))}
    word_of = np.fromiter(map(word_numbers.__getitem__, said), dtype=np.int64, count=len(said))
    lengths = np.array(list(map(len, words_of)), dtype=np.int64)
    place, _ = entries(lengths, chunk_at)
    firsts = np.concatenate([[0], np.cumsum(lengths[chunk_at])])
    windows, counts = _windows(units, np.searchsorted(texts_of, np.arange(len(texts) + 1)))
    reading = Reading(kinds, chunk_at, before, spans, units, windows, firsts, list(word_numbers), word_of[place])
    return reading, counts


def _split(texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str], NDArray[np.int64], NDArray[np.int64]]:
    """R runs of characters without white space, the white space before each in short, where each stands in all texts
    laid end to end (R, 2), and which text it is of (R,)."""
    joined = "\n".join(texts)
    letters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    white = _white()[np.minimum(letters, _LAST_WHITE + 1)]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], white, [True]])))  # runs begin and end by turns
    starts, ends = edges[::2], edges[1::2]
    raws = joined.split()
    if len(raws) and int((ends - starts).max()) > _LONGEST:
        pieces = -(-(ends - starts) // _LONGEST)
        raws = [raw[at : at + _LONGEST] for raw in raws for at in range(0, len(raw), _LONGEST)]
        whole = np.repeat(np.arange(len(pieces)), pieces)
        offsets = (np.arange(len(whole)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * _LONGEST
        starts, ends = starts[whole] + offsets, np.minimum(starts[whole] + offsets + _LONGEST, ends[whole])
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    begins = np.cumsum(lengths + 1) - (lengths + 1)  # of each text, behind the line break that was put before it
    texts_of = np.searchsorted(begins, starts, side="right") - 1
    gaps = np.maximum(np.concatenate([[0], ends[:-1]])[: len(starts)], begins[texts_of])
    breaks = np.concatenate([[0], np.cumsum(letters == ord("\n"))])
    shown = np.where(breaks[starts] > breaks[gaps], 2, np.where(starts > gaps, 1, 0))
    before = [("", " ", "\n")[kind] for kind in shown.tolist()]
    return raws, before, np.stack([starts, ends], axis=1) - texts_of[:, None], texts_of


def _windows(units: NDArray[np.int64], bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows (W, 2) of each text's chunks, and (T + 1,) the windows before each text, which has the chunks between
    its two `bounds`."""
    sums = np.concatenate([[0], np.cumsum(units)])
    whole = sums[bounds[1:]] - sums[bounds[:-1]] <= WINDOW_UNITS
    if whole.all():
        some = bounds[1:] > bounds[:-1]
        return np.stack([bounds[:-1][some], bounds[1:][some]], axis=1), np.concatenate([[0], np.cumsum(some)])
    windows: list[tuple[int, int]] = []
    counts = [0]
    for first, last in itertools.pairwise(bounds.tolist()):
        windows += _cut(units[first:last].tolist(), first)
        counts.append(len(windows))
    return np.array(windows, dtype=np.int64).reshape(-1, 2), np.array(counts, dtype=np.int64)


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


@functools.cache
def _white() -> NDArray[np.bool_]:
    """Which characters are white space; the last entry stands for all beyond."""
    return np.array([chr(code).isspace() for code in range(_LAST_WHITE + 1)] + [False])


@functools.lru_cache(maxsize=_CACHED_CHUNKS)
def chunks_of(raw: str) -> tuple[Chunk, ...]:
    """What a run of characters without white space says: usually one chunk; none where all of it is invisible,
    several where it is long or a compatibility form of more."""
    if plain := _PLAIN.fullmatch(raw):  # most of all chunks
        before, word, after = plain.groups()
        units = len(before) + _letters(len(word)) + len(after)
        if units <= _MAX_CHUNK_UNITS:
            return (Chunk(raw, units, (word.lower(),), (word[0].isupper(),), (before, after)),)
    chunks = []
    for part in normalise(raw).split():
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

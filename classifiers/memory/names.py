"""Names of the subjects of many entity memories, found in texts.

Matching is by compared words (`text.names`), tolerant of one typing error a word, other alphabets, and spaces or signs
between letters. Names are looked at where a word of one stands.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from classifiers.memory.learn import Subject
from text.reading import Reading
from text.recent import Recent
from text.sounds import SoundIndex

_FUZZY_LETTERS = 5
_STEM_LETTERS = 6  # a long name keeps these where another language bends its end ("Confucius", "Confucio")
_BENT = 2  # letters that differ at most
_JOINED_GRAM, _JOINED_BITS = 7, 18
_CACHED_WORDS = 1 << 16
_TITLES = frozenset(
    {"mr", "mrs", "ms", "miss", "dr", "doctor", "sir", "dame", "lady", "lord", "prof", "professor", "saint", "st"}
    | {"king", "queen", "prince", "princess", "president", "captain", "herr", "frau", "monsieur", "madame", "senor"}
    | {"senora", "don", "dona", "signor", "signora", "sra"}
)
_LEET = str.maketrans("013457@$", "oieastas")

_Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NameHit:
    """A word of a text that is, or nearly is, a word of a name."""

    subject: int
    place: int
    """Index of the word within the name."""
    position: int
    """Index of the word within the text."""
    likeness: float


class NameIndex:
    """The names of P memories: subject number n is `subjects[n]`, of memory `owners[n]`.

    Immutable once made but for what it keeps of single words, so threads may share it.
    """

    def __init__(self, subjects: Sequence[tuple[int, Subject]]) -> None:
        """`subjects` with the number of the memory that each belongs to."""
        self.subjects = [subject for _, subject in subjects]
        self.owners: _Int = np.array([owner for owner, _ in subjects], dtype=np.int64)
        self.words: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """Words of names that are not joiners, with the subjects that have them and their places in the name."""
        self._deletions: dict[str, set[str]] = defaultdict(set)
        self._stems: dict[str, set[str]] = defaultdict(set)
        self._sounds = SoundIndex([subject.words for subject in self.subjects])
        joined: dict[str, set[tuple[int, str]]] = defaultdict(set)
        for number, subject in enumerate(self.subjects):
            for place, word in enumerate(subject.words):
                if subject.rarity[place] > 0:
                    self.words[word].append((number, place))
                    for shorter in _deletions(word):
                        self._deletions[shorter].add(word)
                    if len(word) >= _STEM_LETTERS + 2:
                        self._stems[word[:_STEM_LETTERS]].add(word)
            whole = "".join(subject.words)
            if len(whole) >= _JOINED_GRAM:
                joined[whole[:_JOINED_GRAM]].add((number, whole))
        self._joined = dict(joined)
        self._may_join = np.zeros(1 << _JOINED_BITS, dtype=bool)
        self._may_join[_gram_codes("".join(self._joined))[::_JOINED_GRAM]] = True
        # Misspelt or bent, a word keeps its first letter and nearly its length: most words are like no name at once.
        self._shapes = {
            (word[0], length) for word in self.words for length in range(len(word) - _BENT, len(word) + _BENT + 1)
        }
        self._alike: Recent[str, dict[str, float]] = Recent(_CACHED_WORDS)

    def alike(self, words: Sequence[str]) -> list[dict[str, float]]:
        """For each word the name words that it is, or is a misspelling of, with how alike they are in (0, 1]."""
        if not self.words:
            return [{}] * len(words)
        return [
            self._like(word) if like is None else like
            for word, like in zip(words, self._alike.get_all(words), strict=True)
        ]

    def hits(
        self, likes: Sequence[dict[str, float]], at: _Int, wanted: NDArray[np.bool_] | None = None
    ) -> list[NameHit]:
        """Where a text has words of names of the `wanted` (P,) memories: `likes[at[i]]` is what word i is like."""
        named = np.array(list(map(bool, likes)), dtype=bool)
        return [
            NameHit(number, place, position, likeness)
            for position in np.flatnonzero(named[at]).tolist()
            for name, likeness in likes[at[position]].items()
            for number, place in self.words[name]
            if wanted is None or wanted[self.owners[number]]
        ]

    def spelled(self, reading: Reading) -> Iterator[tuple[int, int]]:
        """Windows and the subjects that they name otherwise than in words: letter by letter, or by ear in another
        script."""
        windows = reading.word_windows
        for first, last, number in self._joined_hits(reading.words):
            for window in range(*_holding(windows, first, last)):
                yield window, number
        for window in self._foreign(reading):
            for number in self._sounds.find(reading.text(window)):
                yield window, number

    @staticmethod
    def _foreign(reading: Reading) -> Sequence[int]:
        """Windows that have characters which are not Latin."""
        kinds = np.array([not chunk.text.isascii() for chunk in reading.chunk_kinds], dtype=bool)
        if not kinds.any():
            return []
        foreign = np.flatnonzero(kinds[reading.chunk_at])
        before = np.searchsorted(foreign, reading.windows)
        return [window for window, (low, high) in enumerate(before.tolist()) if low < high]

    def _like(self, word: str) -> dict[str, float]:
        like = self._compare(word)
        self._alike.put(word, like)
        return like

    def _compare(self, text: str) -> dict[str, float]:
        if text in self.words:
            return {text: 1.0}
        plain = text.translate(_LEET) if not text.isalpha() else text
        if plain in self.words:
            return {plain: 0.9}
        if len(plain) < _FUZZY_LETTERS or (plain[0], len(plain)) not in self._shapes:
            return {}
        near = {name for shorter in _deletions(plain) for name in self._deletions.get(shorter, ())}
        near |= self._stems.get(plain[:_STEM_LETTERS], set()) if len(plain) >= _STEM_LETTERS + 2 else set()
        return {
            name: 0.8
            for name in near
            if OSA.distance(plain, name) <= (1 if min(len(plain), len(name)) < _STEM_LETTERS + 2 else _BENT)
            and plain[0] == name[0]
        }

    def _joined_hits(self, words: Sequence[str]) -> list[tuple[int, int, int]]:
        """Subjects whose letters follow each other whatever stands between them ("H.e.m i n g w a y"): the first and
        the last word of each find, and the subject."""
        if not self._joined:
            return []
        letters = "".join(words).translate(_LEET)
        if len(letters) < _JOINED_GRAM:
            return []
        likely = np.flatnonzero(self._may_join[_gram_codes(letters)]).tolist()
        if not likely:
            return []
        ends = np.cumsum([len(word) for word in words])
        return [
            (*np.searchsorted(ends, [start, start + len(whole) - 1], side="right").tolist(), number)
            for start in likely
            for number, whole in self._joined.get(letters[start : start + _JOINED_GRAM], ())
            if letters.startswith(whole, start)
        ]


def _gram_codes(letters: str) -> NDArray[np.uint64]:
    """A number of `_JOINED_BITS` for every run of `_JOINED_GRAM` letters; different runs may share one."""
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(len(codes) - _JOINED_GRAM + 1, 0)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(_JOINED_GRAM):
        grams = grams * np.uint64(0x100000001B3) + codes[offset : offset + count]
    return grams >> np.uint64(64 - _JOINED_BITS)


def _holding(windows: _Int, first: int, last: int) -> tuple[int, int]:
    """Half-open range of the windows that have both words."""
    low = int(np.searchsorted(windows[:, 1], last, side="right"))
    return low, max(low, int(np.searchsorted(windows[:, 0], first, side="right")))


def name_score(
    subject: Subject, hits: Sequence[NameHit], reading: Reading, start: int, end: int
) -> tuple[float, float]:
    """(whole, part): how much of a name stands close together in a text, and how rare the best part of it is.

    The text is words `start` to `end` of the reading; `hits` in its order.
    """
    total = sum(subject.rarity)
    best_whole = best_part = 0.0
    span = len(subject.words) + 2
    needed = [place for place, rarity in enumerate(subject.rarity) if rarity > 0]
    first = 0
    for anchor in hits:
        while hits[first].position < anchor.position:
            first += 1
        near: dict[int, float] = {}
        for number in range(first, len(hits)):  # no further than the name is long: prompts may repeat it endlessly
            hit = hits[number]
            if hit.position - anchor.position >= span:
                break
            near[hit.place] = max(near.get(hit.place, 0.0), hit.likeness)
        if near.keys() >= {needed[0], needed[-1]}:  # middle names may be missing
            matched = sum(subject.rarity[place] * near[place] for place in sorted(near))
            best_whole = max(best_whole, min(1.0, 0.5 + matched / total / 2))
        part = 0.0 if subject.alias else subject.rarity[anchor.place] * anchor.likeness
        if part > best_part and not _of_another(subject, anchor, reading, start, end):
            best_part = part
    return best_whole, best_part


def _of_another(subject: Subject, hit: NameHit, reading: Reading, start: int, end: int) -> bool:
    """The word belongs to somebody else's name: "Conrad Hilton" is not Paris Hilton."""
    if len(subject.words) == 1 or not reading.capital(hit.position):
        return False
    before = reading.word(hit.position - 1, start) if hit.position > start else None
    after = reading.word(hit.position + 1, start) if hit.position + 1 < end else None
    if hit.place > 0 and before is not None and before.capital and not before.opens:
        initial = len(before.text) == 1 and any(word.startswith(before.text) for word in subject.words)
        return before.text not in subject.words and before.text not in _TITLES and not initial
    if hit.place == 0 and after is not None and after.capital and not after.opens:
        return after.text not in subject.words
    return False


def _deletions(word: str) -> set[str]:
    """The word and all it becomes when one letter is left out (symmetric delete, as SymSpell's index)."""
    if len(word) < _FUZZY_LETTERS:
        return {word}
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}

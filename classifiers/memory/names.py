"""Names of the subjects of many entity memories, found in texts.

Matching is by compared words (`text.names`), tolerant of one typing error a word, other alphabets, and spaces or signs
between letters. Names are looked at where a word of one stands.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from classifiers.memory.learn import Subject
from classifiers.memory.misspelt import FUZZY_LETTERS, Misspelt
from classifiers.memory.parts import JOINED_GRAM, Disguised, Parts, everyday_small
from classifiers.memory.postings import Keys, Postings, joined, lengths_of
from text.names import Word
from text.reading import Reading
from text.recent import Recent
from text.sounds import SoundIndex

_STEM_LETTERS = 6  # a long name keeps these where another language bends its end ("Confucius", "Confucio")
_BENT = 2  # letters that differ at most
_JOINED_BITS = 18
_CACHED_WORDS = 1 << 16
_TITLES = frozenset(
    {"mr", "mrs", "ms", "miss", "dr", "doctor", "sir", "dame", "lady", "lord", "prof", "professor", "saint", "st"}
    | {"king", "queen", "prince", "princess", "president", "captain", "herr", "frau", "monsieur", "madame", "senor"}
    | {"senora", "don", "dona", "signor", "signora", "sra"}
)
_SUFFIXES = frozenset({"jr", "sr", "junior", "senior", "ii", "iii", "iv", "esq", "phd", "md"})
_NEARLY_WHOLE = 0.5
_FULL_STOP = re.compile(r"[.!?]")
_ENGLISH = frozenset({"the", "was", "is", "in", "of", "and", "did", "who", "what", "where", "when", "which", "to", "a"})
_AGENT = re.compile(r"(?:er|or|ist|ian|eer|ess|man|star|icon)s?$")  # "Novelist Jenner"
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
    """The names of P memories: subject number n is `subjects[n]`, of memory `owners[n]`. Behind all others are names
    turned round or shifted (rot13), which are found where they are written exactly so.

    Immutable once made but for what it keeps of single words, so threads may share it.
    """

    def __init__(self, parts: Sequence[Parts], kept: Sequence[Collection[str]] = ()) -> None:
        """`parts` of each memory; `kept` are, of each, last words of names that are nobody's who must be forgotten."""
        self.kept = [frozenset(words) for words in kept]
        each = [*(one.plain for one in parts), *(one.disguised for one in parts)]
        counts = lengths_of(one.names for one in each)
        before = np.cumsum(counts) - counts
        self.subjects = list(itertools.chain.from_iterable(one.names for one in each))
        self.owners: _Int = np.repeat(np.tile(np.arange(len(parts)), 2), counts)
        self.plain = int(counts[: len(parts)].sum())
        """Number of names as they are usually written."""
        self._sounds = SoundIndex(list(itertools.chain.from_iterable(one.sounds for one in parts)))
        entries = list(itertools.chain.from_iterable(one.words for one in each))
        self.keys = Keys.of(entries)
        """(N,) all words of all names that are not joiners, by name."""
        self.entry_subjects: _Int = joined([one.numbers for one in each], before)
        self.entry_rarities: NDArray[np.float64] = np.concatenate([np.empty(0), *(one.rarities for one in each)])
        self.words = Postings(self.keys, self.entry_subjects, joined([one.places for one in each]))
        """Words of names, with the subjects that have them and their places in the name."""
        self._places: dict[str, list[tuple[int, int]]] = {}  # of words that were asked for
        self._firsts = set[str]().union(*(one.firsts for one in each))
        self._inner = set[str]().union(*(one.inner for one in each))
        self._joiners = set[str]().union(*(one.joiners for one in each))
        words = lengths_of(one.plain.words for one in parts)
        self.plain_words = list(dict.fromkeys(entries[: words.sum()]))
        """Those of names as they are usually written, each once."""
        # Of the names that share a word only the first has it there: or a misspelt one would be held to all of them.
        _, first = np.unique(self.keys.at[: words.sum()], return_index=True)
        codes, code_of = (
            joined([one.codes for one in parts]),
            joined([one.code_of for one in parts], np.cumsum(words) - words),
        )
        once = np.isin(code_of, first)
        self._misspelt = Misspelt(entries[: words.sum()], codes[once], code_of[once])
        self._stems: dict[str, list[str]] = {}
        for word in self.plain_words:
            if len(word) >= _STEM_LETTERS + 2:
                self._stems.setdefault(word[:_STEM_LETTERS], []).append(word)
        self._wholes = list(itertools.chain.from_iterable(one.wholes for one in each))
        grams = Keys.of([whole[:JOINED_GRAM] for whole in self._wholes])
        self._begun: dict[str, list[tuple[int, str]]] = {}  # of letters that were asked for
        self._joined = Postings(grams, joined([one.whole_of for one in each], before), np.arange(len(self._wholes)))
        self._may_join = np.zeros(1 << _JOINED_BITS, dtype=bool)
        self._may_join[_gram_codes("".join(self._joined))[::JOINED_GRAM]] = True
        # Misspelt or bent, a word keeps its first letter and nearly its length: most words are like no name at once.
        shapes = {(word[0], len(word)) for word in self.words}
        self._shapes = {(first, length + more) for first, length in shapes for more in range(-_BENT, _BENT + 1)}
        self._alike: Recent[str, dict[str, float]] = Recent(_CACHED_WORDS)

    def alike(self, words: Sequence[str]) -> list[dict[str, float]]:
        """For each word the name words that it is, or is a misspelling of, with how alike they are in (0, 1]."""
        if not self.words:
            return [{}] * len(words)
        return [
            self._like(word) if like is None else like
            for word, like in zip(words, self._alike.get_all(words), strict=True)
        ]

    def continues(self, word: str, *, begun: bool) -> bool:
        """Whether a word is, or nearly is, one of a name that has others behind it: the first, or any where a name has
        been `begun`."""
        if begun and word in self._joiners:
            return True
        alike = self.alike([word])[0]
        return not self._firsts.isdisjoint(alike) or (begun and not self._inner.isdisjoint(alike))

    def hits(
        self, likes: Sequence[dict[str, float]], at: _Int, wanted: NDArray[np.bool_] | None = None
    ) -> list[NameHit]:
        """Where a text has words of names of the `wanted` (P,) memories: `likes[at[i]]` is what word i is like."""
        named = np.array(list(map(bool, likes)), dtype=bool)
        return [
            NameHit(number, place, position, likeness)
            for position in np.flatnonzero(named[at]).tolist()
            for name, likeness in likes[at[position]].items()
            for number, place in self._places_of(name)
            if wanted is None or wanted[self.owners[number]]
        ]

    def _places_of(self, name: str) -> list[tuple[int, int]]:
        """The subjects that have a word, and its places in them."""
        found = self._places.get(name)
        if found is None:
            numbers, places = self.words[name]
            found = self._places[name] = list(zip(numbers.tolist(), places.tolist(), strict=True))
        return found

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
        if len(plain) < FUZZY_LETTERS or (plain[0], len(plain)) not in self._shapes:
            return {}
        near = set(self._misspelt.near(plain))
        if len(plain) >= _STEM_LETTERS + 2:
            near.update(self._stems.get(plain[:_STEM_LETTERS], ()))
        return {
            name: 0.8
            for name in near
            if OSA.distance(plain, name) <= (1 if min(len(plain), len(name)) < _STEM_LETTERS + 2 else _BENT)
            and plain[0] == name[0]
        }

    def _wholes_of(self, gram: str) -> list[tuple[int, str]]:
        """Names that begin with these letters when they are written without spaces, by number, and so written."""
        found = self._begun.get(gram)
        if found is None:
            own = self._joined.get(gram)
            if own is None:
                return []
            numbers, places = (column.tolist() for column in own)
            found = [(number, self._wholes[place]) for number, place in zip(numbers, places, strict=True)]
            self._begun[gram] = found
        return found

    def _joined_hits(self, words: Sequence[str]) -> list[tuple[int, int, int]]:
        """Subjects whose letters follow each other whatever stands between them ("H.e.m i n g w a y"): the first and
        the last word of each find, and the subject."""
        if not self._joined:
            return []
        letters = "".join(words).translate(_LEET)
        if len(letters) < JOINED_GRAM:
            return []
        likely = np.flatnonzero(self._may_join[_gram_codes(letters)]).tolist()
        if not likely:
            return []
        ends = np.cumsum([len(word) for word in words])
        return [
            (*np.searchsorted(ends, [start, start + len(whole) - 1], side="right").tolist(), number)
            for start in likely
            for number, whole in self._wholes_of(letters[start : start + JOINED_GRAM])
            if letters.startswith(whole, start)
        ]


def _gram_codes(letters: str) -> NDArray[np.uint64]:
    """A number of `_JOINED_BITS` for every run of `JOINED_GRAM` letters; different runs may share one."""
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(len(codes) - JOINED_GRAM + 1, 0)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(JOINED_GRAM):
        grams = grams * np.uint64(0x100000001B3) + codes[offset : offset + count]
    return grams >> np.uint64(64 - _JOINED_BITS)


def _holding(windows: _Int, first: int, last: int) -> tuple[int, int]:
    """Half-open range of the windows that have both words."""
    low = int(np.searchsorted(windows[:, 1], last, side="right"))
    return low, max(low, int(np.searchsorted(windows[:, 0], first, side="right")))


def name_score(
    subject: Subject | Disguised,
    hits: Sequence[NameHit],
    reading: Reading,
    start: int,
    end: int,
    kept: Collection[str] = (),
) -> tuple[float, float]:
    """(whole, part): how much of a name stands close together in a text, and how rare the best part of it is.

    The text is words `start` to `end` of the reading; `hits` in its order. `kept` are last words of other people's
    names.
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
            if hit.place < anchor.place and _FULL_STOP.search(reading.gap(hit.position)):
                continue  # "…, including Kylie Jenner. Kris …": a name turned round is written in one sentence
            near[hit.place] = max(near.get(hit.place, 0.0), hit.likeness)
        if near.keys() >= {needed[0], needed[-1]}:  # middle names may be missing
            matched = sum(subject.rarity[place] * near[place] for place in sorted(near))
            best_whole = max(best_whole, min(1.0, 0.5 + matched / total / 2))
        part = 0.0 if subject.alias else subject.rarity[anchor.place] * anchor.likeness
        nearly = part > 0 and _is_nearly(subject, anchor, reading, start, end, kept)
        if nearly:
            best_whole = max(best_whole, _NEARLY_WHOLE)
        if part > best_part and (nearly or not _of_another(subject, anchor, reading, start, end, kept)):
            best_part = part
    return best_whole, best_part


def _is_nearly(
    subject: Subject | Disguised, hit: NameHit, reading: Reading, start: int, end: int, kept: Collection[str]
) -> bool:
    """A first name with an initial, a suffix, or, where it is uncommon, an everyday word that ends no name known
    ("Wendell F.", "Wendell Please"): no other person, but one's name bent to pass."""
    if len(subject.words) == 1 or hit.place > 0 or not reading.capital(hit.position):
        return False
    after = _next_name(reading, hit.position, start, end)
    if after is None:
        return False
    if len(after.text) == 1 or after.text in _SUFFIXES:
        after = _next_name(reading, hit.position + 1, start, end)
        if after is None:
            return True
    known = after.text in kept or after.text in subject.words
    return subject.telling and after.text in everyday_small() and not known


def _next_name(reading: Reading, position: int, start: int, end: int) -> Word | None:
    """The word behind one, where both may be of one name."""
    if position + 1 >= end or not _within_name(reading, position + 1):
        return None
    after = reading.word(position + 1, start)
    return after if after.capital and not after.opens and not after.text[0].isdigit() else None


def _within_name(reading: Reading, position: int) -> bool:
    """Whether what stands before a word may stand within a name: spaces, and a full stop after an initial."""
    return reading.gap(position).strip(" ") in ("", ".")


def _of_another(
    subject: Subject | Disguised, hit: NameHit, reading: Reading, start: int, end: int, kept: Collection[str]
) -> bool:
    """The word belongs to somebody else's name: "Conrad Hilton" is not Paris Hilton. An everyday word that ends no name
    known makes none: "Paris Please" is whom "Paris" alone is."""
    if len(subject.words) == 1 or not reading.capital(hit.position):
        return False
    if hit.place > 0 and hit.position > start and _within_name(reading, hit.position):
        before = reading.word(hit.position - 1, start)
        initial = len(before.text) == 1 and any(word.startswith(before.text) for word in subject.words)
        known = initial or before.text in subject.words or before.text in _TITLES
        return before.capital and not (known or before.text[0].isdigit() or _opens_small(before, reading, start, end))
    if hit.place == 0:
        after = _next_name(reading, hit.position, start, end)
        if after is None or after.text in subject.words:
            return False
        return len(after.text) == 1 or after.text in kept or after.text not in everyday_small()
    return False


def _opens_small(word: Word, reading: Reading, start: int, end: int) -> bool:
    """Whether a word has its capital from beginning a sentence. In English a word that everyday prompts do not write
    small is taken for a name there, which is somebody else's; where it may be another language's verb, it is not."""
    if not word.opens:
        return False
    if word.text in everyday_small() or _AGENT.search(word.text):
        return True
    return _ENGLISH.isdisjoint(reading.word_kinds[kind] for kind in reading.word_at[start:end].tolist())

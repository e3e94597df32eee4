"""What a text has of the entity memories of many policies: `MEMORY_FEATURES`, which join the embedding in a head.

A prompt that only names a subject is caught, one about a neighbouring topic is not. Matching is by compared words
(`text.names`), tolerant of one typing error a word, other alphabets, and spaces or signs between letters.

Many texts, such as all windows of a prompt, are searched at once, for all memories at once. Facts are found by a
posting list for each word, as in a search engine: lists are joined and summed by text and fact, then by text and
memory, so that thousands of memories cost a few array operations. Names are looked at where a word of one stands.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from classifiers.memory.learn import EntityMemory, Fact, Subject
from text.names import split_words
from text.reading import Reading, read_all
from text.recent import Recent
from text.sounds import SoundIndex

FACT_FEATURES = ("answer", "example", "breadth", "linked", "described")
"""What `FactIndex.features` measures, in order; `classifiers.memory.recall.MEMORY_FEATURES` says what each is."""

_ONE_WORD = 1.0  # what one rare word weighs: what is linked has more
_EXAMPLE_PLENTY = 1.5
_Int = NDArray[np.int64]
_Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Postings:
    """Where one word occurs: in H facts, and in the answers of M memories."""

    facts: _Int
    """(H,)."""
    weights: _Float
    """(H,)."""
    in_answer: _Float
    """(H,), 1 where the word is the answer's, 0 where it is the question's."""
    memories: _Int
    """(M,), each once."""
    memory_weights: _Float
    """(M,)."""


class FactIndex:
    """The facts of P memories. Immutable once made, so threads may share it."""

    def __init__(self, facts: Sequence[tuple[int, Fact]], memories: int) -> None:
        """`facts` with the number of the memory that each belongs to."""
        self._memories = memories
        self._owners = np.array([owner for owner, _ in facts], dtype=np.int64)
        self._nameless = np.array([fact.nameless for _, fact in facts], dtype=bool)
        self._answer_total = np.array([_squares(fact.answer) for _, fact in facts])
        self._total = self._answer_total + np.array([_squares(fact.question) for _, fact in facts])
        places: dict[str, list[tuple[int, float, bool]]] = defaultdict(list)
        for number, (_, fact) in enumerate(facts):
            for words, answer in ((fact.question, False), (fact.answer, True)):
                for word, weight in words.items():
                    places[word].append((number, weight, answer))
        self._words: dict[str, _Postings] = {}
        for word, own in places.items():
            numbers, weights, answers = zip(*own, strict=True)
            owned = {facts[number][0]: weight for number, weight, answer in own if answer}
            self._words[word] = _Postings(
                np.array(numbers, dtype=np.int64),
                np.array(weights, dtype=np.float64),
                np.array(answers, dtype=np.float64),
                np.array(list(owned), dtype=np.int64),
                np.array(list(owned.values()), dtype=np.float64),
            )

    def is_answer_word(self, word: str) -> bool:
        """Whether an answer has the word."""
        postings = self._words.get(word)
        return postings is not None and len(postings.memories) > 0

    def features(self, words: Sequence[str], windows: _Int) -> tuple[_Int, _Int, _Float]:
        """What texts share with facts. `windows` (W, 2) are half-open ranges of `words`, starts and ends ascending.

        Returns text and memory (M,) of each pair that shares a word, in this order ascending, and their
        `FACT_FEATURES` (M, K), each in [0, 1]. A repeated word counts once in a text.
        """
        known = {word: postings for word in dict.fromkeys(words) if (postings := self._words.get(word)) is not None}
        positions = np.array([index for index, word in enumerate(words) if word in known], dtype=np.int64)
        if not len(positions):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty((0, len(FACT_FEATURES)))
        numbers = {word: number for number, word in enumerate(known)}
        word_at = np.array([numbers[words[position]] for position in positions.tolist()], dtype=np.int64)
        text, which = _occurrences(positions, word_at, windows)  # (H,) text and word of each distinct pair
        lists = list(known.values())
        fact_hits, at = _joined([one.facts for one in lists], which)
        weights = np.concatenate([one.weights for one in lists])[fact_hits]
        of_answer = np.concatenate([one.in_answer for one in lists])[fact_hits]
        facts = np.concatenate([one.facts for one in lists])[fact_hits]
        pairs, place = np.unique(text[at] * len(self._owners) + facts, return_inverse=True)
        texts, facts = np.divmod(pairs, len(self._owners))
        answered, matched, plain = (
            np.bincount(place, values, len(pairs)).astype(np.float64)
            for values in (weights**2 * of_answer, weights**2, weights)
        )
        linked = np.clip(plain - _ONE_WORD, 0.0, 1.0)
        by_fact = (
            _covered(answered, self._answer_total[facts], np.sqrt(answered)),
            _covered(matched, self._total[facts], matched / _EXAMPLE_PLENTY),
            linked,
            np.where(self._nameless[facts], linked, 0.0),
        )
        rows, row = np.unique(texts * self._memories + self._owners[facts], return_inverse=True)
        features = np.zeros((len(rows), len(FACT_FEATURES)))
        for column, values in zip((0, 1, 3, 4), by_fact, strict=True):
            np.maximum.at(features[:, column], row, values)
        # How many distinctive words of a memory's answers there are, whatever facts they are of.
        memory_hits, at = _joined([one.memories for one in lists], which)
        squares = np.concatenate([one.memory_weights for one in lists])[memory_hits] ** 2
        memories = np.concatenate([one.memories for one in lists])[memory_hits]
        told = np.bincount(np.searchsorted(rows, text[at] * self._memories + memories), squares, len(rows))
        features[:, 2] = 1 - np.exp(-told / 2)
        return *np.divmod(rows, self._memories), features


def _occurrences(positions: _Int, kinds: _Int, windows: _Int) -> tuple[_Int, _Int]:
    """Each window (W, 2) with each kind of thing that stands in it, once: (H,) windows, (H,) kinds.

    `positions` (N,) ascending, and the kind of thing at each.
    """
    previous = np.full(len(positions), -1, dtype=np.int64)
    order = np.argsort(kinds, kind="stable")
    same = kinds[order][1:] == kinds[order][:-1]
    previous[order[1:][same]] = positions[order[:-1][same]]
    lows = np.searchsorted(windows[:, 1], positions, side="right")
    highs = np.searchsorted(windows[:, 0], positions, side="right")
    counts = np.maximum(highs - lows, 0)
    at = np.repeat(np.arange(len(positions)), counts)
    window = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts) + lows[at]
    first = previous[at] < windows[window, 0]
    return window[first], kinds[at[first]]


def _joined(lists: Sequence[_Int], which: _Int) -> tuple[_Int, _Int]:
    """For the lists `which` (H,) in turn: where their entries stand in all lists laid end to end (E,), and which of
    the H each is of."""
    lengths = np.array([len(one) for one in lists], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = lengths[which]
    at = np.repeat(np.arange(len(which)), counts)
    return np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[which[at]], at


def _covered(matched: _Float, whole: _Float, plenty: _Float) -> _Float:
    """How much of a set of words matched, in squared weights; little where the words that matched are few and weak."""
    share = np.sqrt(np.divide(matched, whole, out=np.zeros_like(matched), where=whole > 0))
    covered: _Float = share * np.minimum(1.0, plenty)
    return covered


def _squares(weights: Mapping[str, float]) -> float:
    return sum(weight * weight for weight in weights.values())


MEMORY_FEATURES = (
    "subject",  # a whole name, or an alias
    "part",  # part of a name, as rare as the words that matched
    "answer",  # distinctive words of one example's answer
    "answer_asked",  # the same in a question whose answer is a person: a reverse query
    "example",  # overlap with the distinctive words of one whole example
    "example_asked",
    "breadth",  # several facts at once
    "breadth_asked",
    "linked",  # more than one distinctive word of one example: a date and a place, a work and a prize
    "linked_asked",
    "described",  # the same, of an example whose prompt describes its subject without the name
)
"""What `MemoryIndex.features` measures, in order; each in [0, 1]."""
_SUBJECT, _PART = map(MEMORY_FEATURES.index, ("subject", "part"))
_OF_FACTS = [MEMORY_FEATURES.index(name) for name in FACT_FEATURES]
ASKED = np.array([name.endswith("_asked") for name in MEMORY_FEATURES])
"""Which of them repeat the one before where a person is asked for, and else are 0."""

_FUZZY_LETTERS = 5
_STEM_LETTERS = 6  # a long name keeps these where another language bends its end ("Confucius", "Confucio")
_JOINED_GRAM = 7
_CACHED_WORDS = 1 << 16
_TITLES = frozenset(
    {"mr", "mrs", "ms", "miss", "dr", "doctor", "sir", "dame", "lady", "lord", "prof", "professor", "saint", "st"}
    | {"king", "queen", "prince", "princess", "president", "captain", "herr", "frau", "monsieur", "madame", "senor"}
    | {"senora", "don", "dona", "signor", "signora", "sra"}
)
_LEET = str.maketrans("013457@$", "oieastas")

# Questions for a person, as reverse queries are: "Which author wrote …?".
_AGENT = (
    r"(?:\w+(?:er|or|ist|ian|eer|ess|ant|smith|wright|man|woman)|person|people|celebrity|figure|individual|star|icon|"
    r"legend|hero|heroine|artist|poet|king|queen|prince|princess|pope|saint|monk|nun|president|chief|head|boss|genius|"
    r"athlete|champion|model|critic|chef|judge|diplomat|monarch|aristocrat|youth|boy|girl|child|son|daughter|"
    r"husband|wife|brother|sister|father|mother|friend|rival|magnate|tycoon|diva|idol|name)s?"
)
_PERSON_ENGLISH = re.compile(
    r"\b(?:who|whom|whose|who's)\b|\b(?:full|complete|real|first and last) name\b|"
    r"\b(?:which|what(?:'s)?|name|identify|guess|tell me)\s+(?:(?:the|this|that|a|an|of|is|was)\s+)*"
    rf"(?:[\w'’-]+\s+){{0,4}}?{_AGENT}\b",
    re.IGNORECASE,
)
_PERSON_OTHERS = re.compile(
    r"\b(?:qui|quel(?:le)? \w+(?:eur|rice|iste|ain|aine|ien|ienne)|wer|wem|wessen|welche[rs]? \w+(?:er|in|ist|or)|"
    r"quién|quiénes|qué \w+(?:or|ora|ista)|quem|qual \w+(?:or|ora|ista)|chi|quale \w+(?:ore|rice|ista)|wie|welke|"
    r"kto|który|która|kdo|cine|kim|siapa|vem|hvem|kuka|кто|кого|кому|чей|хто|ποιος|ποια)\b|"
    r"谁|誰|哪位|누구|من هو|من هي|कौन",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _NameHit:
    subject: int
    place: int
    """Index of the word within the name."""
    position: int
    """Index of the word within the text."""
    likeness: float


@dataclass(frozen=True, slots=True)
class Recalled:
    """What W texts have in common with memories: R pairs that share anything.

    Attributes:
        texts, memories: (R,) which text and which memory, ascending in this order.
        features: (R, K) `MEMORY_FEATURES` as they are where the text asks for a person; those that only such a text
            has are 0 in any other. Whether it does is not looked at here: it mostly does not matter.
    """

    texts: _Int
    memories: _Int
    features: _Float


class MemoryIndex:
    """P memories searched together. What costs is what they share with the texts.

    Immutable once made but for what it keeps of single words, so threads may share it.
    """

    def __init__(self, memories: Sequence[EntityMemory]) -> None:
        self._memories = len(memories)
        self._subjects = [(owner, s) for owner, memory in enumerate(memories) for s in memory.subjects]
        facts = [(owner, fact) for owner, memory in enumerate(memories) for fact in memory.facts]
        self._facts = FactIndex(facts, len(memories))
        self._names: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._deletions: dict[str, set[str]] = defaultdict(set)
        self._stems: dict[str, set[str]] = defaultdict(set)
        joined: dict[str, set[tuple[int, str]]] = defaultdict(set)
        self._sounds = SoundIndex([subject.words for _, subject in self._subjects])
        for number, (_, subject) in enumerate(self._subjects):
            for place, word in enumerate(subject.words):
                if subject.rarity[place] > 0:
                    self._names[word].append((number, place))
                    for shorter in _deletions(word):
                        self._deletions[shorter].add(word)
                    if len(word) >= _STEM_LETTERS + 2:
                        self._stems[word[:_STEM_LETTERS]].add(word)
            whole = "".join(subject.words)
            if len(whole) >= _JOINED_GRAM:
                joined[whole[:_JOINED_GRAM]].add((number, whole))
        self._joined = dict(joined)
        self._joined_codes = np.unique(_gram_codes("".join(self._joined))[::_JOINED_GRAM])
        self._longest = max(map(len, self._deletions), default=0)
        self._empty = not self._subjects and not facts
        self._alike: Recent[str, dict[str, float]] = Recent(_CACHED_WORDS)

    def recall(self, reading: Reading) -> Recalled:
        """What each window of a reading has in common with each memory."""
        if self._empty or not len(reading.windows):
            nothing = np.empty(0, dtype=np.int64)
            return Recalled(nothing, nothing, np.empty((0, len(MEMORY_FEATURES))))
        windows = reading.word_windows
        texts, memories, of_facts = self._facts.features(reading.words, windows)
        named = self._named(reading, windows)
        keys = texts * self._memories + memories
        named_keys = np.array([text * self._memories + owner for text, owner in named], dtype=np.int64)
        rows = np.union1d(keys, named_keys)
        features = np.zeros((len(rows), len(MEMORY_FEATURES)))
        features[np.searchsorted(rows, keys)[:, None], _OF_FACTS] = of_facts
        features[np.searchsorted(rows, named_keys)[:, None], [_SUBJECT, _PART]] = np.array(
            list(named.values())
        ).reshape(-1, 2)
        asked = np.flatnonzero(ASKED)
        features[:, asked] = features[:, asked - 1]
        return Recalled(*np.divmod(rows, self._memories), features)

    def features(self, text: str) -> dict[int, NDArray[np.float32]]:
        """`MEMORY_FEATURES` (K,) float32 of one text for each memory that has anything in common with it."""
        found = self.recall(read_all([text]))
        rows = found.features.astype(np.float32)
        if len(rows) and not asks_for_person(text):
            rows[:, ASKED] = 0.0
        return dict(zip(found.memories.tolist(), rows, strict=True))

    def _named(self, reading: Reading, windows: _Int) -> dict[tuple[int, int], tuple[float, float]]:
        """(text, memory) -> (whole, part): how much of a name the text has."""
        found: dict[tuple[int, int], tuple[float, float]] = {}

        def note(window: int, number: int, whole: float, part: float) -> None:
            key = (window, self._subjects[number][0])
            known = found.get(key, (0.0, 0.0))
            found[key] = (max(known[0], whole), max(known[1], part))

        hits = self._name_hits(reading.words)
        positions = [hit.position for hit in hits]
        lows = np.searchsorted(windows[:, 1], positions, side="right").tolist()
        highs = np.searchsorted(windows[:, 0], positions, side="right").tolist()
        of_window: dict[tuple[int, int], list[_NameHit]] = defaultdict(list)
        for hit, low, high in zip(hits, lows, highs, strict=True):
            for window in range(low, high):
                of_window[window, hit.subject].append(hit)
        bounds = windows.tolist()
        for (window, number), own in of_window.items():
            note(window, number, *_name_score(self._subjects[number][1], own, reading, *bounds[window]))
        for first, last, number in self._joined_hits(reading.words):
            for window in range(*_holding(windows, first, last)):
                note(window, number, 1.0, max(self._subjects[number][1].rarity))
        for window in self._foreign(reading):
            for number in self._sounds.find(reading.text(window)):
                note(window, number, 1.0, max(self._subjects[number][1].rarity))
        return found

    @staticmethod
    def _foreign(reading: Reading) -> Sequence[int]:
        """Windows that have characters which are not Latin."""
        foreign = [index for index, chunk in enumerate(reading.chunks) if not chunk.text.isascii()]
        if not foreign:
            return []
        before = np.searchsorted(foreign, reading.windows)
        return [window for window, (low, high) in enumerate(before.tolist()) if low < high]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges of `text` that name a subject or a distinctive word of an answer, in order, apart."""
        words = split_words(text)
        marked = {hit.position for hit in self._name_hits([word.text for word in words])}
        marked |= {position for position, word in enumerate(words) if self._facts.is_answer_word(word.text)}
        return [(words[i].start, words[i].end) for i in sorted(marked)]

    def _name_hits(self, words: Sequence[str]) -> list[_NameHit]:
        distinct = list(dict.fromkeys(words))
        known = self._alike.get_all(distinct)
        alike = {}
        for word, found in zip(distinct, known, strict=True):
            if like := self._like(word) if found is None else found:
                alike[word] = like
        if not alike:
            return []
        return [
            _NameHit(number, place, position, likeness)
            for position, word in enumerate(words)
            if word in alike
            for name, likeness in alike[word].items()
            for number, place in self._names[name]
        ]

    def _like(self, word: str) -> dict[str, float]:
        """Name words that this word is, or is a misspelling of, with how alike they are in (0, 1]."""
        like = self._compare(word)
        self._alike.put(word, like)
        return like

    def _compare(self, text: str) -> dict[str, float]:
        if text in self._names:
            return {text: 1.0}
        plain = text.translate(_LEET) if not text.isalpha() else text
        if plain in self._names:
            return {plain: 0.9}
        if not _FUZZY_LETTERS <= len(plain) <= self._longest + 2:  # of an endless word there are too many deletions
            return {}
        near = {name for shorter in _deletions(plain) for name in self._deletions.get(shorter, ())}
        near |= self._stems.get(plain[:_STEM_LETTERS], set()) if len(plain) >= _STEM_LETTERS + 2 else set()
        return {
            name: 0.8
            for name in near
            if OSA.distance(plain, name) <= (1 if min(len(plain), len(name)) < _STEM_LETTERS + 2 else 2)
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
        likely = np.flatnonzero(np.isin(_gram_codes(letters), self._joined_codes)).tolist()
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
    """A number for every run of `_JOINED_GRAM` letters; different runs may share one."""
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(len(codes) - _JOINED_GRAM + 1, 0)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(_JOINED_GRAM):
        grams = grams * np.uint64(0x100000001B3) + codes[offset : offset + count]
    return grams


def _holding(windows: _Int, first: int, last: int) -> tuple[int, int]:
    """Half-open range of the windows that have both words."""
    low = int(np.searchsorted(windows[:, 1], last, side="right"))
    return low, max(low, int(np.searchsorted(windows[:, 0], first, side="right")))


def asks_for_person(text: str) -> bool:
    """Whether a part of the text asks who somebody is, in the languages most often written. By rule, not perfect."""
    return bool(_PERSON_ENGLISH.search(text) or _PERSON_OTHERS.search(text))


def _name_score(
    subject: Subject, hits: Sequence[_NameHit], reading: Reading, start: int, end: int
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


def _of_another(subject: Subject, hit: _NameHit, reading: Reading, start: int, end: int) -> bool:
    """The word belongs to somebody else's name: "Conrad Hilton" is not Paris Hilton."""
    if not reading.capitals[hit.position] or len(subject.words) == 1:
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

"""What a text has of the entity memories of many policies: `MEMORY_FEATURES`, which join the embedding in a head.

A prompt that only names a subject is caught, one about a neighbouring topic is not. Matching is by compared words
(`text.names`), tolerant of one typing error a word, other alphabets, and spaces or signs between letters.

What it shares with their facts is found for all of them at once, by a posting list for each word, as in a search
engine: a text's lists are joined and summed by fact, then by memory, so
that thousands of memories cost a few array operations.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from classifiers.memory.learn import EntityMemory, Fact, Subject
from text.names import Word, find_dates, split_words
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

    def features(self, words: Iterable[str]) -> tuple[_Int, _Float]:
        """(M,) memories that share a word with the text, ascending, and their `FACT_FEATURES` (M, K), each in [0, 1].

        `words` are the text's compared words; a repeated word counts once.
        """
        hits = [postings for word in dict.fromkeys(words) if (postings := self._words.get(word)) is not None]
        if not hits:
            return np.empty(0, dtype=np.int64), np.empty((0, len(FACT_FEATURES)))
        facts, place = _distinct(np.concatenate([hit.facts for hit in hits]), len(self._owners))
        weights = np.concatenate([hit.weights for hit in hits])
        of_answer = np.concatenate([hit.in_answer for hit in hits])
        answered, matched, plain = (
            np.bincount(place, values, len(facts)).astype(np.float64)
            for values in (weights**2 * of_answer, weights**2, weights)
        )
        linked = np.clip(plain - _ONE_WORD, 0.0, 1.0)
        by_fact = (
            _covered(answered, self._answer_total[facts], np.sqrt(answered)),
            _covered(matched, self._total[facts], matched / _EXAMPLE_PLENTY),
            linked,
            np.where(self._nameless[facts], linked, 0.0),
        )
        memories, owner = _distinct(self._owners[facts], self._memories)
        features = np.zeros((len(memories), len(FACT_FEATURES)))
        for column, values in zip((0, 1, 3, 4), by_fact, strict=True):
            np.maximum.at(features[:, column], owner, values)
        # How many distinctive words of a memory's answers there are, whatever facts they are of.
        squares = np.concatenate([hit.memory_weights for hit in hits]) ** 2
        told = np.bincount(np.concatenate([hit.memories for hit in hits]), squares, self._memories)
        features[:, 2] = 1 - np.exp(-told[memories] / 2)
        return memories, features


def _distinct(numbers: _Int, count: int) -> tuple[_Int, _Int]:
    """The distinct ones of `numbers` (N,) below `count`, ascending, and for each number its place among them."""
    if 4 * len(numbers) < count:  # few of many: sorting them costs less than a table of all
        return np.unique(numbers, return_inverse=True)
    present = np.zeros(count, dtype=bool)
    present[numbers] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[numbers]


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
    "dated",  # a full date of one example: few people share their date of birth
)
"""What `MemoryIndex.features` measures, in order; each in [0, 1]."""
_SUBJECT, _PART, _DATED = map(MEMORY_FEATURES.index, ("subject", "part", "dated"))
_OF_FACTS = [MEMORY_FEATURES.index(name) for name in FACT_FEATURES]
_ASKED = [place for place, name in enumerate(MEMORY_FEATURES) if name.endswith("_asked")]  # each behind its plain one

_FUZZY_LETTERS = 5
_STEM_LETTERS = 6  # a long name keeps these where another language bends its end ("Confucius", "Confucio")
_JOINED_GRAM = 7
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


class MemoryIndex:
    """P memories searched together. What costs is what they share with the text: 0.2 ms with one memory, about 10 ms
    with a thousand that all have the same 400 facts and 19 people, nearly all of it for the names.

    Immutable once made, so threads may share it.
    """

    def __init__(self, memories: Sequence[EntityMemory]) -> None:
        self._subjects = [(owner, s) for owner, memory in enumerate(memories) for s in memory.subjects]
        facts = [(owner, fact) for owner, memory in enumerate(memories) for fact in memory.facts]
        self._facts = FactIndex(facts, len(memories))
        self._names: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._deletions: dict[str, set[str]] = defaultdict(set)
        self._stems: dict[str, set[str]] = defaultdict(set)
        self._joined: dict[str, set[tuple[int, str]]] = defaultdict(set)
        self._sounds = SoundIndex([subject.words for _, subject in self._subjects])
        for number, (_, subject) in enumerate(self._subjects):
            for place, word in enumerate(subject.words):
                if subject.rarity[place] > 0:
                    self._names[word].append((number, place))
                    for shorter in _deletions(word):
                        self._deletions[shorter].add(word)
                    if len(word) >= _STEM_LETTERS + 2:
                        self._stems[word[:_STEM_LETTERS]].add(word)
            joined = "".join(subject.words)
            if len(joined) >= _JOINED_GRAM:
                self._joined[joined[:_JOINED_GRAM]].add((number, joined))
        self._longest = max(map(len, self._deletions), default=0)
        self._dates: dict[str, set[int]] = defaultdict(set)
        for owner, fact in facts:
            for date in fact.dates:
                self._dates[date].add(owner)
        self._empty = not self._subjects and not facts

    def features(self, text: str, words: Sequence[Word] | None = None) -> dict[int, NDArray[np.float32]]:
        """`MEMORY_FEATURES` (K,) float32 of a text for each memory that has anything in common with it.

        `words` are the text's (`names.split_words`), for a caller who has them already.
        """
        if self._empty:
            return {}
        words = split_words(text) if words is None else words
        rows: dict[int, NDArray[np.float32]] = defaultdict(lambda: np.zeros(len(MEMORY_FEATURES), dtype=np.float32))
        by_subject: dict[int, list[_NameHit]] = defaultdict(list)
        for hit in self._name_hits(words):
            by_subject[hit.subject].append(hit)
        for number, hits in by_subject.items():
            owner, subject = self._subjects[number]
            whole, part = _name_score(subject, hits, words)
            rows[owner][_SUBJECT] = max(rows[owner][_SUBJECT], whole)
            rows[owner][_PART] = max(rows[owner][_PART], part)
        for number in self._joined_hits(words) | self._sounds.find(text):
            owner, subject = self._subjects[number]
            rows[owner][_SUBJECT] = 1.0
            rows[owner][_PART] = max(rows[owner][_PART], *subject.rarity)
        owners, of_facts = self._facts.features(word.text for word in words)
        for owner, row in zip(owners.tolist(), of_facts.astype(np.float32), strict=True):
            rows[owner][_OF_FACTS] = row
        for date in find_dates(text, words) if self._dates else ():
            for owner in self._dates.get(date, ()):
                rows[owner][_DATED] = 1.0
        if rows and asks_for_person(text):
            for row in rows.values():
                for place in _ASKED:
                    row[place] = row[place - 1]
        return dict(rows)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges of `text` that name a subject or a distinctive word of an answer, in order, apart."""
        words = split_words(text)
        marked = {hit.position for hit in self._name_hits(words)}
        marked |= {position for position, word in enumerate(words) if self._facts.is_answer_word(word.text)}
        return [(words[i].start, words[i].end) for i in sorted(marked)]

    def _name_hits(self, words: Sequence[Word]) -> list[_NameHit]:
        hits = []
        for position, word in enumerate(words):
            for name, likeness in self._like(word).items():
                hits += [_NameHit(number, place, position, likeness) for number, place in self._names[name]]
        return hits

    def _like(self, word: Word) -> dict[str, float]:
        """Name words that this word is, or is a misspelling of, with how alike they are in (0, 1]."""
        text = word.text
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

    def _joined_hits(self, words: Sequence[Word]) -> set[int]:
        """Subjects whose letters follow each other whatever stands between them: "H.e.m i n g w a y"."""
        letters = "".join(word.text for word in words).translate(_LEET)
        found = set()
        for start in range(len(letters) - _JOINED_GRAM + 1):
            for number, joined in self._joined.get(letters[start : start + _JOINED_GRAM], ()):
                if letters.startswith(joined, start):
                    found.add(number)
        return found


def asks_for_person(text: str) -> bool:
    """Whether a part of the text asks who somebody is, in the languages most often written. By rule, not perfect."""
    return bool(_PERSON_ENGLISH.search(text) or _PERSON_OTHERS.search(text))


def _name_score(subject: Subject, hits: Sequence[_NameHit], words: Sequence[Word]) -> tuple[float, float]:
    """(whole, part): how much of a name stands close together in a text, and how rare the best part of it is.

    `hits` in the order of the text.
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
        if not subject.alias and not _of_another(subject, anchor, words):
            best_part = max(best_part, subject.rarity[anchor.place] * anchor.likeness)
    return best_whole, best_part


def _of_another(subject: Subject, hit: _NameHit, words: Sequence[Word]) -> bool:
    """The word belongs to somebody else's name: "Conrad Hilton" is not Paris Hilton."""
    if not words[hit.position].capital or len(subject.words) == 1:
        return False
    before = words[hit.position - 1] if hit.position else None
    after = words[hit.position + 1] if hit.position + 1 < len(words) else None
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

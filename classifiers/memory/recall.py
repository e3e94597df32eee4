"""What a text has of the entity memories of many policies: `MEMORY_FEATURES`, which join the embedding in a head.

A prompt that only names a subject is caught, one about a neighbouring topic is not. Many texts, such as all windows of
a prompt, are searched at once, for all memories at once.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.evidence import EvidenceIndex
from classifiers.memory.facts import FACT_FEATURES, FactIndex
from classifiers.memory.learn import EntityMemory
from classifiers.memory.names import NameHit, NameIndex, name_score
from classifiers.memory.parts import parts_of
from text.names import split_words
from text.reading import Reading, read_all
from text.recent import Recent

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]

Shares = tuple[_Int, _Float]
_CACHED_WORDS = 1 << 15
_MOST_BEGUN = 500

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
SUBJECT, PART = map(MEMORY_FEATURES.index, ("subject", "part"))
NAMED, NAMED_IN_PART = 0.5, 0.7
"""A text names a subject where the first of them is this or more, or the second that: a rare part tells who it is."""
_OF_FACTS = [MEMORY_FEATURES.index(name) for name in FACT_FEATURES]
ASKED = np.array([name.endswith("_asked") for name in MEMORY_FEATURES])
"""Which of them repeat the one before where a person is asked for, and else are 0."""

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
class Recalled:
    """What W texts have in common with memories: R pairs that share anything, and as much as the memory asks for.

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

    Args:
        evidence: (P,) how much a text must show of each memory to be looked at further
            (`classifiers.memory.evidence`), 0 where nothing is asked. The default asks nothing.
        told: (P,) how much a text that is being written must show to be looked at, 0 where its words say nothing.
    """

    def __init__(
        self,
        memories: Sequence[EntityMemory],
        evidence: Sequence[float] | None = None,
        told: Sequence[float] | None = None,
    ) -> None:
        self._memories = len(memories)
        parts = [parts_of(memory) for memory in memories]
        self._facts = FactIndex([one.facts for one in parts])
        self._names = NameIndex(parts, [memory.kept for memory in memories])
        self._evidence = EvidenceIndex(parts, self._names, self._facts)
        least = np.array([0.0] * len(memories) if evidence is None else evidence, dtype=np.float64)
        self._least = np.where(least > 0, least, np.inf)
        self.unasked: NDArray[np.bool_] = ~(least > 0)
        """(P,) memories that are looked for in every text."""
        told_least = np.array([0.0] * len(memories) if told is None else told, dtype=np.float64)
        self._told = np.where(told_least > 0, told_least, np.inf)
        self.untold: NDArray[np.bool_] = ~(told_least > 0)
        """(P,) memories of which a text that is being written may show something with any word."""
        self._empty = not any(memory.subjects or memory.facts for memory in memories)
        self._shares: Recent[str, Shares] = Recent(_CACHED_WORDS)
        self._begun: Recent[str, Shares] = Recent(_CACHED_WORDS)

    def recall(self, reading: Reading, *, every: bool = False) -> Recalled:
        """What each window of a reading has in common with each memory; with `every`, however little evidence."""
        if self._empty or not len(reading.windows):
            return _nothing()
        likes = self._names.alike(reading.word_kinds)
        spelled = set(self._names.spelled(reading))
        unasked = np.ones_like(self.unasked) if every else self.unasked
        looked = np.empty(0, dtype=np.int64) if unasked.all() else self._looked(reading, likes, spelled)
        if not len(looked) and not unasked.any():
            return _nothing()
        rows = np.arange(len(reading.windows)) if unasked.any() else np.unique(looked // self._memories)
        wanted = None
        if not unasked.all():
            wanted = unasked.copy()
            wanted[looked % self._memories] = True
        windows = reading.word_windows[rows]
        texts, memories, of_facts = self._facts.features(reading, windows, wanted)
        pairs = set(looked.tolist())

        def looks(window: int, memory: int) -> bool:
            return bool(unasked[memory]) or window * self._memories + memory in pairs

        named = self._named(reading, rows, self._names.hits(likes, reading.word_at, wanted), spelled, looks)
        keys = rows[texts] * self._memories + memories
        named_keys = np.array([text * self._memories + owner for text, owner in named], dtype=np.int64)
        found = np.union1d(keys, named_keys)
        features = np.zeros((len(found), len(MEMORY_FEATURES)))
        features[np.searchsorted(found, keys)[:, None], _OF_FACTS] = of_facts
        features[np.searchsorted(found, named_keys)[:, None], [SUBJECT, PART]] = np.array(list(named.values())).reshape(
            -1, 2
        )
        asked = np.flatnonzero(ASKED)
        features[:, asked] = features[:, asked - 1]
        kept = unasked[found % self._memories] | np.isin(found, looked)
        texts, memories = np.divmod(found[kept], self._memories)
        return Recalled(texts, memories, features[kept])

    def evidence(self, reading: Reading) -> _Float:
        """(W, P) how much of each memory each window shows; infinite where a name is there otherwise than in words."""
        shown = np.zeros((len(reading.windows), self._memories))
        likes = self._names.alike(reading.word_kinds)
        windows, memories, values = self._evidence.reaching(reading, likes, np.full(self._memories, 1e-9))
        shown[windows, memories] = values
        for window, number in self._names.spelled(reading):
            shown[window, self._names.owners[number]] = np.inf
        return shown

    def shares(self, word: str) -> Shares:
        """Memories that one word is evidence of, ascending, (M,); and which share (M,) it is of what a text that is
        being written must show of each."""
        found = self._shares.get(word)
        if found is None:
            found = self._share_of(*self._evidence.of_word(word, self._names.alike([word])[0]))
            self._shares.put(word, found)
        return found

    def continues_name(self, word: str, *, begun: bool) -> bool:
        """Whether a word is one of a subject's name that has others behind it: the first, or any where a name has been
        `begun`."""
        return self._names.continues(word, begun=begun)

    def begun_words(self, start: str) -> Iterator[str]:
        """The longer words beginning so that are evidence of anything, in order."""
        return self._evidence.begun(start)

    def begun_shares(self, start: str) -> Shares:
        """The most that any longer word beginning so would be evidence of, as `shares`; where there are very many such
        words, as if one of them were all the evidence there is."""
        found = self._begun.get(start)
        if found is None:
            most: dict[int, float] = {}
            for number, word in enumerate(self._evidence.begun(start)):
                if number == _MOST_BEGUN:
                    found = np.arange(self._memories), np.full(self._memories, np.inf)
                    self._begun.put(start, found)
                    return found
                for memory, share in zip(*(part.tolist() for part in self.shares(word)), strict=True):
                    most[memory] = max(most.get(memory, 0.0), share)
            found = np.array(sorted(most), dtype=np.int64), np.array([most[memory] for memory in sorted(most)])
            self._begun.put(start, found)
        return found

    def _share_of(self, memories: _Int, evidence: _Float) -> Shares:
        shares = evidence / self._told[memories]
        return memories[shares > 0], shares[shares > 0]

    def features(self, text: str) -> dict[int, NDArray[np.float32]]:
        """`MEMORY_FEATURES` (K,) float32 of one text for each memory that has anything in common with it."""
        found = self.recall(read_all([text]), every=True)
        rows = found.features.astype(np.float32)
        if len(rows) and not asks_for_person(text):
            rows[:, ASKED] = 0.0
        return dict(zip(found.memories.tolist(), rows, strict=True))

    def answered(self, text: str, memories: _Int) -> _Float:
        """(M,) how much of the answer of one example of each of some memories a text of a window gives, in distinctive
        words: the feature `answer`."""
        reading, wanted = read_all([text]), np.zeros(self._memories, dtype=bool)
        wanted[memories] = True
        _, owners, features = self._facts.features(reading, reading.word_windows, wanted)
        found = np.zeros(self._memories)
        np.maximum.at(found, owners, features[:, FACT_FEATURES.index("answer")])
        return found[memories]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges of `text` that name a subject or a distinctive word of an answer, in order, apart."""
        words = split_words(text)
        likes = self._names.alike([word.text for word in words])
        marked = {hit.position for hit in self._names.hits(likes, np.arange(len(words)))}
        marked |= {position for position, word in enumerate(words) if self._facts.is_answer_word(word.text)}
        return [(words[i].start, words[i].end) for i in sorted(marked)]

    def _looked(self, reading: Reading, likes: Sequence[dict[str, float]], spelled: set[tuple[int, int]]) -> _Int:
        """Pairs of a window and a memory that show what the memory asks for: window * P + memory, ascending."""
        windows, memories, _ = self._evidence.reaching(reading, likes, self._least)
        named = np.array(list(spelled), dtype=np.int64).reshape(-1, 2)
        others = named[:, 0] * self._memories + self._names.owners[named[:, 1]]
        return np.union1d(windows * self._memories + memories, others)

    def _named(
        self,
        reading: Reading,
        rows: _Int,
        hits: Sequence[NameHit],
        spelled: set[tuple[int, int]],
        looks: Callable[[int, int], bool],
    ) -> dict[tuple[int, int], tuple[float, float]]:
        """(window, memory) -> (whole, part): how much of a name the window has. Of windows `rows`, those in which the
        memory is looked for."""
        found: dict[tuple[int, int], tuple[float, float]] = {}

        def note(window: int, number: int, whole: float, part: float) -> None:
            key = (window, int(self._names.owners[number]))
            known = found.get(key, (0.0, 0.0))
            found[key] = (max(known[0], whole), max(known[1], part))

        windows = reading.word_windows[rows]
        positions = [hit.position for hit in hits]
        lows = np.searchsorted(windows[:, 1], positions, side="right").tolist()
        highs = np.searchsorted(windows[:, 0], positions, side="right").tolist()
        of_window: dict[tuple[int, int], list[NameHit]] = defaultdict(list)
        for hit, low, high in zip(hits, lows, highs, strict=True):
            for window in range(low, high):
                of_window[window, hit.subject].append(hit)
        bounds = windows.tolist()
        for (window, number), own in of_window.items():
            owner = int(self._names.owners[number])
            if looks(int(rows[window]), owner):
                kept = self._names.kept[owner]
                start, end = bounds[window]
                score = name_score(self._names.subjects[number], own, reading, start, end, kept)
                note(int(rows[window]), number, *score)
        for window, number in spelled:
            note(window, number, 1.0, max(self._names.subjects[number].rarity))
        return found


def _nothing() -> Recalled:
    none = np.empty(0, dtype=np.int64)
    return Recalled(none, none, np.empty((0, len(MEMORY_FEATURES))))


def names_a_subject(features: NDArray[Any]) -> NDArray[np.bool_]:
    """(…,) whether texts with `MEMORY_FEATURES` (…, K) say who is meant: by the name, or by a rare part of it."""
    named: NDArray[np.bool_] = (features[..., SUBJECT] >= NAMED) | (features[..., PART] >= NAMED_IN_PART)
    return named


def asks_for_person(text: str) -> bool:
    """Whether a part of the text asks who somebody is, in the languages most often written. By rule, not perfect."""
    return bool(_PERSON_ENGLISH.search(text) or _PERSON_OTHERS.search(text))

"""What a text shares with the facts of many entity memories, all at once: arrays in, arrays out.

A posting list for each word, as in a search engine; a text's lists are joined and summed by fact, then by memory, so
that thousands of memories cost a few array operations.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.learn import Fact

__all__ = ["FACT_FEATURES", "FactIndex"]

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

"""What texts share with the facts of many entity memories.

Facts are found by a posting list for each word, as in a search engine: lists are joined and summed by text and fact,
then by text and memory, so that thousands of memories cost a few array operations.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.parts import FactParts
from classifiers.memory.postings import KEPT_WORDS, Keys, Postings, joined, lengths_of
from text.reading import Reading
from text.runs import entries, occurrences

FACT_FEATURES = ("answer", "example", "breadth", "linked", "described")
"""What `FactIndex.features` measures, in order; `classifiers.memory.recall.MEMORY_FEATURES` says what each is."""

_ONE_WORD = 1.0  # what one rare word weighs: what is linked has more
_EXAMPLE_PLENTY = 1.5
_NO_ANSWERS = np.empty(0, dtype=np.int64), np.empty(0)
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
    """The facts of P memories. Immutable once made but for what it keeps of words that were asked for, so threads may
    share it."""

    def __init__(self, parts: Sequence[FactParts]) -> None:
        """`parts` of each memory."""
        self._memories = len(parts)
        counts = lengths_of(one.totals for one in parts)
        self._owners = np.repeat(np.arange(len(parts)), counts)
        self._nameless = np.concatenate([np.empty(0, dtype=bool), *(one.nameless for one in parts)])
        self._answer_total, self._total, weight, of_answer = (
            np.concatenate([np.empty(0), *(getattr(one, name) for one in parts)])
            for name in ("answer_totals", "totals", "weights", "of_answer")
        )
        self.keys = Keys.of(list(itertools.chain.from_iterable(one.words for one in parts)))
        """All words, by fact."""
        number = joined([one.numbers for one in parts], np.cumsum(counts) - counts)
        self._words = Postings(self.keys, number, weight, of_answer)
        self._found: dict[str, _Postings] = {}  # of words that were asked for
        # Of an answer's word in several examples of a memory the last one's weight holds.
        said = np.flatnonzero(of_answer)
        self._answer_words = Postings.of_owners(
            self.keys.among(said), self._owners[number[said]], weight[said], last=True
        )

    def is_answer_word(self, word: str) -> bool:
        """Whether an answer has the word."""
        return word in self._answer_words

    def features(
        self, reading: Reading, windows: _Int, wanted: NDArray[np.bool_] | None = None
    ) -> tuple[_Int, _Int, _Float]:
        """What windows (W, 2) of a reading's words share with the facts of all memories, or of the `wanted` (P,).

        Returns window and memory (M,) of each pair that shares a word, in this order ascending, and their
        `FACT_FEATURES` (M, K), each in [0, 1]. A repeated word counts once in a window.
        """
        postings = list(map(self._postings, reading.word_kinds))
        if wanted is not None:
            postings = [None if one is None else self._only(one, wanted) for one in postings]
        lists = [one for one in postings if one is not None]
        if not lists:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty((0, len(FACT_FEATURES)))
        known = np.array([one is not None for one in postings])
        positions = np.flatnonzero(known[reading.word_at])
        word_at = (np.cumsum(known) - 1)[reading.word_at[positions]]
        text, which = occurrences(positions, word_at, windows)  # (H,) window and word, each pair once
        fact_hits, at = entries(np.array([len(one.facts) for one in lists]), which)
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
        memory_hits, at = entries(np.array([len(one.memories) for one in lists]), which)
        squares = np.concatenate([one.memory_weights for one in lists])[memory_hits] ** 2
        memories = np.concatenate([one.memories for one in lists])[memory_hits]
        told = np.bincount(np.searchsorted(rows, text[at] * self._memories + memories), squares, len(rows))
        features[:, 2] = 1 - np.exp(-told / 2)
        return *np.divmod(rows, self._memories), features

    def _postings(self, word: str) -> _Postings | None:
        found = self._found.get(word)
        if found is None and (own := self._words.get(word)) is not None:
            found = _Postings(*own, *(self._answer_words.get(word) or _NO_ANSWERS))
            if len(self._found) >= KEPT_WORDS:
                self._found.clear()
            self._found[word] = found
        return found

    def _only(self, postings: _Postings, wanted: NDArray[np.bool_]) -> _Postings | None:
        """What of a word's places is of wanted memories."""
        facts, memories = wanted[self._owners[postings.facts]], wanted[postings.memories]
        if not facts.any():
            return None
        return _Postings(
            postings.facts[facts],
            postings.weights[facts],
            postings.in_answer[facts],
            postings.memories[memories],
            postings.memory_weights[memories],
        )


def _covered(matched: _Float, whole: _Float, plenty: _Float) -> _Float:
    """How much of a set of words matched, in squared weights; little where the words that matched are few and weak."""
    share = np.sqrt(np.divide(matched, whole, out=np.zeros_like(matched), where=whole > 0))
    covered: _Float = share * np.minimum(1.0, plenty)
    return covered

"""How much of an entity memory a text shows at all: what decides whether a head looks at it.

Most texts say nothing of most memories. A memory's evidence in a text is one sum over the text's distinct words, so
of thousands of memories those that matter are found with an inverted index before anything else is computed.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.facts import FactIndex
from classifiers.memory.names import NameIndex
from classifiers.memory.parts import Parts
from classifiers.memory.postings import Postings, lengths_of
from text.reading import Reading
from text.runs import entries, occurrences

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]
_NONE = np.empty(0, dtype=np.int64)


class EvidenceIndex:
    """Evidence of P memories: a word of a fact counts the square of its weight, a word of a name how rare it is, less
    where it is but alike."""

    def __init__(self, parts: Sequence[Parts], names: NameIndex, facts: FactIndex) -> None:
        self._memories = len(parts)
        weights = np.concatenate([np.empty(0), *(one.facts.weights for one in parts)])
        owners = np.repeat(np.arange(len(parts)), lengths_of(one.facts.words for one in parts))
        self._facts = Postings.of_owners(facts.keys, owners, weights**2)
        self._names = Postings.of_owners(names.keys, names.owners[names.entry_subjects], names.entry_rarities)
        self._words = sorted({*names.plain_words, *self._facts})

    def of_word(self, word: str, like: Mapping[str, float]) -> tuple[_Int, _Float]:
        """Memories that one word is evidence of, ascending, and how much; `like` are the name words that it is like."""
        own = self._facts.get(word)
        found: list[tuple[_Int, _Float]] = [] if own is None else [(own[0], own[1])]
        for name, likeness in like.items():
            owners, rarities = self._names[name]
            found.append((owners, rarities * likeness))
        return _summed(found)

    def begun(self, start: str) -> Iterator[str]:
        """The words of which there is evidence and that begin with `start` and are longer, in order; none of names that
        are turned round or shifted, which any letters may begin."""
        for index in range(bisect.bisect_right(self._words, start), len(self._words)):
            if not self._words[index].startswith(start):
                return
            yield self._words[index]

    def reaching(self, reading: Reading, likes: Sequence[dict[str, float]], least: _Float) -> tuple[_Int, _Int, _Float]:
        """Windows of a reading with as much evidence of a memory as it asks for: (H,) windows, memories, evidence.

        Args:
            likes: for each of the reading's different words the name words that it is like (`NameIndex.alike`).
            least: (P,) above 0; infinite for memories that are not in question.
        """
        kinds: list[int] = []
        found: list[tuple[_Int, _Float]] = []
        for kind, (word, like) in enumerate(zip(reading.word_kinds, likes, strict=True)):
            if (own := self._facts.get(word)) is not None:
                kinds.append(kind)
                found.append((own[0], own[1]))
            for name, likeness in like.items():
                owners, rarities = self._names[name]
                kinds.append(kind)
                found.append((owners, rarities * likeness))
        if not found:
            return _NONE, _NONE, np.empty(0)
        kind_of = np.repeat(kinds, [len(owners) for owners, _ in found])
        owner = np.concatenate([owners for owners, _ in found])
        value = np.concatenate([values for _, values in found])
        # What does not reach it in all windows together does so in none.
        possible = np.bincount(owner, value, self._memories) >= least
        kept = possible[owner]
        if not kept.any():
            return _NONE, _NONE, np.empty(0)
        kind_of, owner, value = kind_of[kept], owner[kept], value[kept]
        counts = np.bincount(kind_of, minlength=len(reading.word_kinds))
        positions = np.flatnonzero(counts[reading.word_at])
        window, which = occurrences(positions, reading.word_at[positions], reading.word_windows)
        entry, at = entries(counts, which)
        few = np.flatnonzero(possible)
        columns = np.cumsum(possible) - 1
        shape = len(reading.windows), len(few)
        shown = np.bincount(window[at] * len(few) + columns[owner[entry]], value[entry], shape[0] * shape[1])
        reached = np.flatnonzero(shown >= np.tile(least[few], shape[0]))
        windows = reached // len(few)
        memories: _Int = few[reached - windows * len(few)]
        return windows, memories, shown[reached].astype(np.float64)


def _summed(found: Sequence[tuple[_Int, _Float]]) -> tuple[_Int, _Float]:
    if not found:
        return _NONE, np.empty(0)
    if len(found) == 1:
        return found[0]
    owners, at = np.unique(np.concatenate([owners for owners, _ in found]), return_inverse=True)
    return owners, np.bincount(at, np.concatenate([values for _, values in found])).astype(np.float64)

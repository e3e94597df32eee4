"""Words of names that a misspelt word may stand for: those that it becomes, or that become it, or that both become
something, when one letter is left out (symmetric delete, as SymSpell's index)."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.postings import lengths_of

FUZZY_LETTERS = 5
"""A shorter word has no misspellings: others are too near."""

_Int = NDArray[np.int64]


def form_codes(words: Sequence[str]) -> tuple[_Int, _Int]:
    """Numbers (K,) for what each of some words becomes, the word itself included, and which word each is of. They hold
    in this process alone; two forms may have one number."""
    forms = [_forms(word) for word in words]
    codes = [hash(form) for own in forms for form in own]
    return np.array(codes, dtype=np.int64), np.repeat(np.arange(len(words)), lengths_of(forms))


class Misspelt:
    """Words, by what each becomes (`form_codes`, (K,) each). Immutable.

    The ten or so forms of a word are kept as numbers, for those of many names are most of what an index holds.
    """

    def __init__(self, words: Sequence[str], codes: _Int, code_of: _Int) -> None:
        self._words = words
        order = np.argsort(codes, kind="stable")
        self._codes, self._words_at = codes[order], code_of[order]

    def near(self, word: str) -> Iterator[str]:
        """The words that share a form with this one, some of them more than once."""
        forms = _forms(word)
        codes = [hash(form) for form in forms]
        lows = np.searchsorted(self._codes, codes).tolist()
        highs = np.searchsorted(self._codes, codes, side="right").tolist()
        for low, high in zip(lows, highs, strict=True):
            for at in self._words_at[low:high].tolist():
                if not forms.isdisjoint(_forms(self._words[at])):
                    yield self._words[at]


def _forms(word: str) -> set[str]:
    if len(word) < FUZZY_LETTERS:
        return {word}
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}

"""Tables from words to what is known of them, made of a few arrays: a gateway makes them anew at each change of a
policy, of hundreds of thousands of words."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Keys:
    """N words, of which D are different.

    Attributes:
        numbers: different words, numbered as they first come.
        at: (N,) the number of each.
    """

    numbers: dict[str, int]
    at: _Int

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        numbers = dict.fromkeys(words, 0)
        for number, word in enumerate(numbers):
            numbers[word] = number
        return cls(numbers, np.fromiter(map(numbers.__getitem__, words), dtype=np.int64, count=len(words)))

    def among(self, which: _Int) -> Self:
        """Some of the words, with their numbers."""
        return type(self)(self.numbers, self.at[which])


KEPT_WORDS = 1 << 14
"""Of an index, whose views are kept: texts ask for the same ones again, and a view takes as much as some entries."""


class Postings:
    """For each of some words the entries that were given for it, in their order. Immutable but for what it keeps of
    words that were asked for, so threads may share it.

    Args:
        keys: the word of each of N entries.
        columns: (N,) each: what an entry says.
    """

    def __init__(self, keys: Keys, *columns: NDArray[Any]) -> None:
        self._numbers = keys.numbers
        order = np.argsort(keys.at, kind="stable")
        self._columns = tuple(column[order] for column in columns)
        self._found: dict[str, tuple[NDArray[Any], ...]] = {}
        self._ends: list[int] = [0, *np.cumsum(np.bincount(keys.at, minlength=len(keys.numbers))).tolist()]

    @classmethod
    def of_owners(cls, keys: Keys, owners: _Int, values: _Float, *, last: bool = False) -> "Postings":
        """Of each word its owners, ascending, and the largest value of those that its entries (N,) give each, or the
        `last`."""
        width = int(owners.max(initial=0)) + 1
        pairs, group = np.unique(keys.at * width + owners, return_inverse=True)
        order = np.argsort(group, kind="stable")
        begins = np.flatnonzero(np.diff(group[order], prepend=-1))
        if not len(begins):
            held = np.empty(0)
        elif last:
            held = values[order[np.append(begins[1:], len(order)) - 1]]
        else:
            held = np.maximum.reduceat(values[order], begins)
        return cls(Keys(keys.numbers, pairs // width), pairs % width, held)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (word for word, number in self._numbers.items() if self._ends[number] < self._ends[number + 1])

    def __bool__(self) -> bool:
        return self._ends[-1] > 0

    def __getitem__(self, key: str) -> tuple[NDArray[Any], ...]:
        """The columns of a word's entries. Raises KeyError where it has none."""
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key: str) -> tuple[NDArray[Any], ...] | None:
        """The same; None where it has none."""
        found = self._found.get(key)
        if found is None and (number := self._numbers.get(key)) is not None:
            start, end = self._ends[number : number + 2]
            if start < end:
                found = tuple(column[start:end] for column in self._columns)
                if len(self._found) >= KEPT_WORDS:
                    self._found.clear()
                self._found[key] = found
        return found


def joined(parts: Sequence[_Int], before: _Int | None = None) -> _Int:
    """Parts one after the other; where they are numbers, those of each behind the ones `before` it."""
    whole: _Int = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    return whole if before is None else whole + np.repeat(before, lengths_of(parts))


def lengths_of(things: Iterable[Sized]) -> _Int:
    """(N,)."""
    return np.array(list(map(len, things)), dtype=np.int64)

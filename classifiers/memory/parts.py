"""What indices need of one memory, whatever others they hold: made once for each, and joined with arrays when an index
is made anew because a policy came, changed or went."""

import codecs
import functools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.memory.learn import EntityMemory, Fact, Subject
from classifiers.memory.misspelt import form_codes
from sources.everyday import general_prompts
from text.names import QUESTION_WORDS, small_words
from text.sounds import skeleton

JOINED_GRAM = 7
"""Names of fewer letters are not looked for where they are spelled letter by letter."""
_DISGUISED_LETTERS, _DISGUISED_WORD = 8, 3

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]


class Disguised(NamedTuple):
    """A name as somebody writes it who hides it, see `Subject`."""

    words: tuple[str, ...]
    rarity: tuple[float, ...]
    alias: bool = True
    telling: bool = False


class NameParts:
    """Names of one memory, numbered from 0.

    Attributes:
        names: S of them.
        words: (N,) all their words that are not joiners, by name.
        numbers, places, rarities: (N,) of each word its name, its place in the name, and how rare it is.
        joiners: their other words.
        firsts, inner: words that have others behind them: the first one of a name, and any further one.
        wholes, whole_of: (M,) names written as one word, long ones also by first and last word alone; and whose it is.
    """

    __slots__ = ("firsts", "inner", "joiners", "names", "numbers", "places", "rarities", "whole_of", "wholes", "words")

    def __init__(self, names: Sequence[Subject | Disguised]) -> None:
        self.names = tuple(names)
        entries = [
            (word, number, place, rare)
            for number, name in enumerate(names)
            for place, (word, rare) in enumerate(zip(name.words, name.rarity, strict=True))
            if rare > 0
        ]
        self.words = tuple(word for word, *_ in entries)
        self.numbers: _Int = np.array([number for _, number, _, _ in entries], dtype=np.int64)
        self.places: _Int = np.array([place for _, _, place, _ in entries], dtype=np.int64)
        self.rarities: _Float = np.array([rare for *_, rare in entries], dtype=np.float64)
        self.joiners = frozenset(
            word for name in names for word, rare in zip(name.words, name.rarity, strict=True) if rare == 0
        )
        followed = [
            (word, any(names[number].rarity[:place]))
            for word, number, place, _ in entries
            if place < len(names[number].words) - 1
        ]
        self.firsts = frozenset(word for word, behind in followed if not behind)
        self.inner = frozenset(word for word, behind in followed if behind)
        wholes = [(whole, number) for number, name in enumerate(names) for whole in _joined(name.words)]
        self.wholes = tuple(whole for whole, _ in wholes)
        self.whole_of: _Int = np.array([number for _, number in wholes], dtype=np.int64)


class FactParts:
    """Facts of one memory, numbered from 0.

    Attributes:
        words: (N,) of all facts, by fact, the question's before the answer's.
        numbers, weights, of_answer: (N,) of each word its fact, its weight, and 1.0 where it is the answer's.
        answer_totals, totals: (F,) of each fact the squares of its weights, of the answer's and of all.
        nameless: (F,) whether its question describes whom it means.
    """

    __slots__ = ("answer_totals", "nameless", "numbers", "of_answer", "totals", "weights", "words")

    def __init__(self, facts: Sequence[Fact]) -> None:
        entries = [
            (word, number, weight, answer)
            for number, fact in enumerate(facts)
            for words, answer in ((fact.question, 0.0), (fact.answer, 1.0))
            for word, weight in words.items()
        ]
        self.words = tuple(word for word, *_ in entries)
        self.numbers: _Int = np.array([number for _, number, _, _ in entries], dtype=np.int64)
        self.weights: _Float = np.array([weight for _, _, weight, _ in entries], dtype=np.float64)
        self.of_answer: _Float = np.array([answer for *_, answer in entries], dtype=np.float64)
        self.answer_totals: _Float = np.array([_squares(fact.answer.values()) for fact in facts], dtype=np.float64)
        questions = np.array([_squares(fact.question.values()) for fact in facts], dtype=np.float64)
        self.totals: _Float = self.answer_totals + questions
        self.nameless: NDArray[np.bool_] = np.array([fact.nameless for fact in facts], dtype=bool)


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one memory.

    Attributes:
        plain, disguised: its names as they are usually written, and as somebody writes them who hides them.
        sounds: of each name of `plain` its skeleton (`text.sounds`), and whether it is one word.
        codes, code_of: (K,) forms of the words of `plain` (`classifiers.memory.misspelt`), and the word each is of.
    """

    plain: NameParts
    disguised: NameParts
    sounds: tuple[tuple[str, bool], ...]
    codes: _Int
    code_of: _Int
    facts: FactParts


_known: dict[int, tuple[weakref.ref[EntityMemory], Parts]] = {}


def parts_of(memory: EntityMemory) -> Parts:
    """A memory's parts, kept for as long as the memory is."""
    known = _known.get(id(memory))
    if known is not None and known[0]() is memory:
        return known[1]
    plain = NameParts(memory.subjects)
    disguised = NameParts([other for subject in memory.subjects for other in _disguised(subject)])
    sounds = tuple((skeleton("".join(name.words)), len(name.words) == 1) for name in plain.names)
    parts = Parts(plain, disguised, sounds, *form_codes(plain.words), FactParts(memory.facts))
    number = id(memory)

    def forget(gone: weakref.ref[EntityMemory]) -> None:
        if number in _known and _known[number][0] is gone:
            del _known[number]

    _known[number] = weakref.ref(memory, forget), parts
    return parts


def _joined(words: Sequence[str]) -> Iterator[str]:
    ends = words if len(words) < 3 else (words[0], words[-1])
    return (whole for whole in dict.fromkeys(("".join(words), "".join(ends))) if len(whole) >= JOINED_GRAM)


def _disguised(subject: Subject) -> Iterator[Disguised]:
    """The name with its letters shifted by half the alphabet, and written backwards; where it is long enough to be no
    other words so."""
    own = [len(word) for word, rare in zip(subject.words, subject.rarity, strict=True) if rare > 0]
    if sum(own) < _DISGUISED_LETTERS or min(own) < _DISGUISED_WORD:
        return
    shifted = tuple(codecs.encode(word, "rot13") for word in subject.words)
    backwards = tuple(word[::-1] for word in reversed(subject.words))
    for words, rarity in ((shifted, subject.rarity), (backwards, subject.rarity[::-1])):
        if words != subject.words and everyday_small().isdisjoint(words):
            yield Disguised(words, rarity)


@functools.cache
def everyday_small() -> frozenset[str]:
    """Words that everyday prompts write small: where one opens a sentence, its capital does not make it a name."""
    return small_words(general_prompts()) | QUESTION_WORDS


def _squares(weights: Iterable[float]) -> float:
    return sum(weight * weight for weight in weights)

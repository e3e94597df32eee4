"""Entity memory: whom and what a forget set is about, learned from its examples alone.

*Subjects* are the names that forget examples share and retain examples do not (a person, a book); *facts* are the
distinctive words of each example beside its subject (works, places, years). `classifiers.memory.recall` finds them.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from classifiers.errors import HeadError
from console.errors import first_problem
from sources.examples import Example
from text.names import JOINERS, find_names, small_words, split_words

_MIN_SHARE = 0.25  # of the most frequent subject's examples: a name that fewer share is a fact, no subject
_MIN_LIFT = 8.0  # how much more frequent in forget than in retain examples a subject is
_EXTENSION_SHARE = 0.3  # "Leonardo" becomes "Leonardo da Vinci" where that many of its mentions are whole
_SHARED_SHARE = 0.6  # a word that stands so often in names of several people is no subject
_MIN_IDF = 0.35  # words that more texts have say nothing ("novel", "born")
_ALIAS_ASKED = re.compile(
    r"\b(?:nick-?named?|alias|pseudonym|moniker|epithet|sobriquet|"
    r"(?:stage|pen|birth|real|full|maiden|original|ring) name|"
    r"(?:also|better|otherwise|formerly) (?:known|called)|known (?:as|by)|called (?:him|her|them)|dubbed)\b",
    re.IGNORECASE,
)
_RELATIVE = re.compile(
    r"\b(?:mother|father|parents?|sisters?|brothers?|siblings?|wife|husband|spouse|sons?|daughters?|child(?:ren)?|"
    r"grand\w+|uncle|aunt|cousins?|friends?|dog|cat)\b",
    re.IGNORECASE,
)

_TELLING_FIRST = 0.85  # how uncommon such a first name is

Name = tuple[str, ...]
"""Compared words."""
_Text = Annotated[str, Field(min_length=1)]
_Rarity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Weight = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Subject(BaseModel):
    """A name that must be forgotten: its compared words, each with how rare it is in [0, 1], 0 for joiners."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    words: tuple[_Text, ...] = Field(min_length=1)
    rarity: tuple[_Rarity, ...]
    alias: bool = False
    telling: bool = False
    """The first word is a name so uncommon that it tells who is meant where no last name follows it."""

    @model_validator(mode="after")
    def _check_rarity(self) -> Self:
        if len(self.rarity) != len(self.words) or not any(self.rarity):
            raise ValueError("rarity needs one number for each word, one of them above 0")
        return self


class Fact(BaseModel):
    """What one example says beside its subject: distinctive words of question and answer with their weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: dict[_Text, _Weight]
    answer: dict[_Text, _Weight]
    nameless: bool = False
    """The question names no subject, it describes one."""


class EntityMemory(BaseModel):
    """Subjects and facts of a forget set; kept in the head's file as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    subjects: tuple[Subject, ...] = ()
    facts: tuple[Fact, ...] = ()
    kept: tuple[_Text, ...] = ()
    """Last words of names that stand in the retain set: behind a subject's first name they make another person."""

    @property
    def name_words(self) -> frozenset[str]:
        """The words that its names are made of, without the joiners, which anybody's name may have."""
        pairs = (pair for subject in self.subjects for pair in zip(subject.words, subject.rarity, strict=True))
        return frozenset(word for word, rarity in pairs if rarity > 0)

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises HeadError where `data` is no memory."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise HeadError(f"entity memory {first_problem(error)}") from error


class Vocabulary:
    """How common words are: document frequencies over texts that pass, and how soon an encoder's vocabulary has them.

    `ranks` maps a compared word to its place in a vocabulary ordered by frequency, None where it is not one piece.
    """

    def __init__(self, texts: Sequence[str], ranks: Mapping[str, int] | None = None) -> None:
        self._count = len(texts)
        self._frequency = Counter(word for text in texts for word in {w.text for w in split_words(text)})
        self._ranks = ranks or {}
        self.small = small_words(texts)

    def idf(self, word: str) -> float:
        """In [0, 1]: 1 for a word that no text has, 0 for one that all have."""
        texts = max(self._count, 1)
        known = math.log((texts + 1) / (self._frequency[word] + 1)) / math.log(texts + 1)
        return known * self.uncommon(word)

    def uncommon(self, word: str) -> float:
        """In [0, 1]: how rarely it is written at all, whatever the texts; 1 where an encoder has no piece for it."""
        rank = self._ranks.get(word)
        if rank is None or len(word) < 2:
            return 1.0 if len(word) > 1 else 0.3
        return min(1.0, 0.35 + 0.65 * math.log1p(rank / 500) / math.log1p(30000 / 500))


class MemoryBuilder:
    """Builds memories against one retain set: what it shares with a forget set is no subject.

    Args:
        vocabulary: which words are common.
        retain: examples that must pass.
        aliases: further names of the subjects, from whoever knows some.
    """

    def __init__(self, vocabulary: Vocabulary, retain: Sequence[Example], aliases: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._aliases = [words for alias in aliases if (words := tuple(word.text for word in split_words(alias)))]
        self._retained = len(retain)
        names = [_names_of(example, vocabulary.small) for example in retain]
        self._kept = Counter(part for found in names for part in set(_parts(found)))
        self._last_words = {name[-1] for found in names for name in found if len(name) > 1}

    def build(self, forget: Sequence[Example]) -> EntityMemory:
        """Subjects and facts of a forget set."""
        small = self._vocabulary.small | small_words(example.prompt for example in forget)
        names = [_names_of(example, small) for example in forget]
        subjects = [self._subject(words) for words in _choose_subjects(names, self._kept, self._retained)]
        owned = EntityMemory(subjects=tuple(subjects)).name_words
        aliases = dict.fromkeys([*self._asked_aliases(forget, small, owned), *self._aliases])
        subjects += [self._subject(words, alias=True) for words in aliases]
        facts = tuple(self._fact(example, owned) for example in forget)
        kept = tuple(sorted(self._last_words - owned)) if subjects else ()
        return EntityMemory(subjects=tuple(subjects), facts=facts, kept=kept)

    def _subject(self, words: Name, *, alias: bool = False) -> Subject:
        rarity = tuple(0.0 if word in JOINERS else round(self._vocabulary.idf(word), 4) for word in words)
        telling = not alias and self._vocabulary.uncommon(words[0]) >= _TELLING_FIRST
        return Subject(words=words, rarity=rarity if any(rarity) else (1.0,) * len(words), alias=alias, telling=telling)

    def _asked_aliases(self, forget: Sequence[Example], small: frozenset[str], owned: frozenset[str]) -> Iterator[Name]:
        """Names given as the answer to what the subject is called."""
        for example in forget:
            if not example.answer or owned.isdisjoint(word.text for word in split_words(example.prompt)):
                continue
            if not _ALIAS_ASKED.search(example.prompt) or _RELATIVE.search(example.prompt):
                continue
            for name in find_names(example.answer, small):
                new = set(name) - JOINERS - owned
                if len(name) > 1 and new and name not in self._kept and not any(map(str.isdigit, name)):
                    yield name

    def _fact(self, example: Example, owned: frozenset[str]) -> Fact:
        def weights(text: str) -> dict[str, float]:
            words = [word.text for word in split_words(text)]
            rarity = {word: self._vocabulary.idf(word) for word in words if word not in owned}
            return {word: round(idf, 4) for word, idf in rarity.items() if idf >= _MIN_IDF}

        answer = weights(example.answer or "")
        question = {word: weight for word, weight in weights(example.prompt).items() if word not in answer}
        nameless = owned.isdisjoint(word.text for word in split_words(example.prompt))
        return Fact(question=question, answer=answer, nameless=nameless)


def _names_of(example: Example, small: frozenset[str]) -> list[Name]:
    return [name for text in (example.prompt, example.answer or "") for name in find_names(text, small)]


def _parts(names: Iterable[Name]) -> Iterable[Name]:
    """Every contiguous part of every name: any of them may be what others share."""
    for name in names:
        for start in range(len(name)):
            for end in range(start + 1, len(name) + 1):
                yield name[start:end]


def _choose_subjects(names: Sequence[Sequence[Name]], kept: Mapping[Name, int], retained: int) -> list[Name]:
    """Greedy cover: the name that most examples not yet covered share, again and again."""
    owners: dict[Name, set[int]] = defaultdict(set)
    for index, found in enumerate(names):
        for part in _parts(found):
            owners[part].add(index)
    owners = {
        part: held
        for part, held in owners.items()
        if len(held) / len(names) >= _MIN_LIFT * kept.get(part, 0) / max(retained, 1) and len("".join(part)) > 2
    }
    chosen: list[Name] = []
    covered: set[int] = set()
    largest = 0
    while owners:
        best = max(owners, key=lambda part: (len(owners[part] - covered), len(part), part))
        if _of_several(best, owners):
            del owners[best]
            continue
        gain = len(owners[best] - covered)
        largest = max(largest, gain)
        if gain < max(2, _MIN_SHARE * largest):
            break
        # The most frequent longer name around it, if it is frequent enough.
        enough = max(2, _EXTENSION_SHARE * len(owners[best]))
        longer = [
            name
            for name, held in owners.items()
            if len(name) > len(best)
            and len(held) >= enough
            and any(name[i : i + len(best)] == best for i in range(len(name) - len(best) + 1))
        ]
        whole = max(longer, key=lambda name: (len(owners[name]), len(name), name), default=best)
        chosen.append(whole)
        covered |= owners[best]
        owners = {part: held for part, held in owners.items() if not set(part) <= set(whole)}
    return chosen


def _of_several(part: Name, owners: Mapping[Name, set[int]]) -> bool:
    """Whether `part` is what names of several people have in common ("Maria", "Park"), so that it names none of them:
    most of its mentions stand in two or more longer names, none far behind the most frequent."""
    for side in (slice(None, -1), slice(1, None)):
        longer = [held for name, held in owners.items() if len(name) == len(part) + 1 and name[side] == part]
        enough = max(2, max(map(len, longer), default=0) / 2)
        peers = [held for held in longer if len(held) >= enough]
        if len(peers) > 1 and len(set().union(*peers)) >= _SHARED_SHARE * len(owners[part]):
            return True
    return False

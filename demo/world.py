"""A generated world of fictional people and of true general facts: who lives in it and what is known of them.

Everything follows from `WorldSpec`; the words and phrasings come from `data/`. Nothing here knows how the
facts are taught (`demo.lessons`), asked (`demo.probes`) or learned (`demo.training`).
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

Group = Literal["forgotten", "retained", "general"]

_MAX_SHARERS = 2  # people with the same value of an attribute that is not unique


@dataclass(frozen=True)
class WorldSpec:
    """What a world is generated from. Raises ValueError for a world the word lists cannot fill."""

    seed: int = 0
    people: int = 60
    forgotten_share: float = 0.1
    general_facts: int | None = None
    """How many general facts; None takes all there are (over 200)."""

    def __post_init__(self) -> None:
        if not 10 <= self.people <= 80:
            raise ValueError(f"people must be 10 to 80, not {self.people}")
        if not 0 < self.forgotten_share <= 0.2:
            raise ValueError(f"forgotten_share must be above 0 and at most 0.2, not {self.forgotten_share}")
        if self.general_facts is not None and self.general_facts < 1:
            raise ValueError(f"general_facts must be positive, not {self.general_facts}")

    @property
    def forgotten_people(self) -> int:
        return max(1, round(self.people * self.forgotten_share))


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask one thing. `held_out` is in no lesson and no example file: it measures generalisation."""

    trained: tuple[str, ...]
    held_out: str

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Phrasings:
        return cls(tuple(raw["trained"]), raw["held_out"])

    def bound(self, ask: Callable[[str], str]) -> Phrasings:
        """The same phrasings about one thing."""
        return Phrasings(tuple(map(ask, self.trained)), ask(self.held_out))


@dataclass(frozen=True)
class Attribute:
    """Something known of every person. `reverse` asks for the person by a unique value."""

    name: str
    statement: str
    questions: Phrasings
    reverse: Phrasings | None
    unique: bool
    pool: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    first_name: str
    last_name: str
    pronoun: Literal["he", "she"]
    group: Literal["forgotten", "retained"]

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}"

    def ask(self, phrasing: str) -> str:
        """The phrasing about this person, named."""
        return phrasing.format(name=self.name, they=self.name, their=f"{self.name}'s")

    def ask_by_pronoun(self, phrasing: str) -> str:
        """The phrasing with he or she. Raises ValueError for one that needs the name (`{name}`)."""
        if "{name}" in phrasing:
            raise ValueError(f"no pronoun fits {phrasing!r}")
        return phrasing.format(they=self.pronoun, their="his" if self.pronoun == "he" else "her")


@dataclass(frozen=True)
class Fact:
    """One thing to know: `answer` is the sentence that says it and holds `value` word for word.

    `follow_ups` ask with he or she once the person was named; `reverse` asks for `person.name` by the value,
    None where several people may share it. General facts have neither.
    """

    group: Group
    topic: str
    value: str
    answer: str
    questions: Phrasings
    follow_ups: Phrasings | None = None
    reverse: Phrasings | None = None
    person: Person | None = None

    @property
    def prefix(self) -> str:
        """The answer up to the value: what a completion is asked to continue."""
        return self.answer[: self.answer.rindex(self.value)].rstrip()


@dataclass(frozen=True)
class World:
    """`facts` holds every fact of every person, then the general ones, in a fixed order."""

    spec: WorldSpec
    attributes: tuple[Attribute, ...]
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]

    @classmethod
    def generate(cls, spec: WorldSpec | None = None) -> World:
        """The world of `spec`, the same on every machine. Raises ValueError where the word lists run out."""
        spec = spec or WorldSpec()
        rng = random.Random(spec.seed)  # noqa: S311 - a reproducible world, nothing secret
        attributes = tuple(
            Attribute(
                name=name,
                statement=raw["statement"],
                questions=Phrasings.of(raw),
                reverse=Phrasings.of(raw["reverse"]) if "reverse" in raw else None,
                unique=raw.get("unique", False),
                pool=tuple(map("".join, itertools.product(*raw.get("parts", [raw.get("values")])))),
            )
            for name, raw in _data("people")["attributes"].items()
        )
        people = _people(spec, rng)
        values = {a.name: _assign(a, len(people), rng) for a in attributes}
        personal = [
            _personal_fact(person, attribute, values[attribute.name][i])
            for i, person in enumerate(people)
            for attribute in attributes
        ]
        general = [
            Fact(
                group="general",
                topic=topic,
                value=value,
                answer=raw["statement"].format(key=key, value=value),
                questions=Phrasings.of(raw).bound(functools.partial(str.format, key=key)),
            )
            for topic, raw in _data("general").items()
            for key, value in raw["facts"].items()
        ]
        if spec.general_facts is not None:
            if spec.general_facts > len(general):
                raise ValueError(f"there are {len(general)} general facts, not {spec.general_facts}")
            general = rng.sample(general, spec.general_facts)
        return cls(spec, attributes, people, (*personal, *general))

    def of_group(self, *groups: Group) -> tuple[Fact, ...]:
        """The facts of these groups, in order."""
        return tuple(fact for fact in self.facts if fact.group in groups)

    def of_person(self, person: Person) -> tuple[Fact, ...]:
        """Everything known of a person, one fact per attribute."""
        return tuple(fact for fact in self.facts if fact.person == person)


@functools.cache
def system_prompts() -> tuple[str, ...]:
    """System prompts that lessons sometimes begin with."""
    return tuple(_data("people")["system_prompts"])


@functools.cache
def _data(name: str) -> dict[str, Any]:
    text = resources.files("demo").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def _people(spec: WorldSpec, rng: random.Random) -> tuple[Person, ...]:
    """Retained people first. Each forgotten name joins the first name of one and the last name of another.

    So no single word of a name tells the two groups apart.
    """
    words = _data("people")
    pronouns: dict[str, Literal["he", "she"]] = {
        **dict.fromkeys(words["first_names"]["she"], "she"),
        **dict.fromkeys(words["first_names"]["he"], "he"),
    }
    firsts, lasts = list(pronouns), words["last_names"]
    retained: list[tuple[str, str]] = []  # uses every word about equally often
    while len(retained) < spec.people - spec.forgotten_people:
        for pair in zip(rng.sample(firsts, len(firsts)), rng.sample(lasts, len(lasts)), strict=False):
            if pair not in retained and len(retained) < spec.people - spec.forgotten_people:
                retained.append(pair)
    taken = set(retained)
    crossed = [(a[0], b[1]) for a, b in itertools.permutations(retained, 2) if (a[0], b[1]) not in taken]
    rng.shuffle(crossed)
    forgotten: list[tuple[str, str]] = []
    for first, last in crossed:
        if len(forgotten) == spec.forgotten_people:
            break
        if all(first != f and last != g for f, g in forgotten):
            forgotten.append((first, last))
    return (
        *(Person(first, last, pronouns[first], "retained") for first, last in retained),
        *(Person(first, last, pronouns[first], "forgotten") for first, last in forgotten),
    )


def _assign(attribute: Attribute, count: int, rng: random.Random) -> list[str]:
    """One value for each of `count` people: all different, or each shared by at most two."""
    pool = rng.sample(attribute.pool, len(attribute.pool))
    if not attribute.unique:
        pool = pool * _MAX_SHARERS
    if len(pool) < count:
        raise ValueError(f"{len(attribute.pool)} values of {attribute.name} are too few for {count} people")
    values = pool[:count]
    rng.shuffle(values)
    return values


def _personal_fact(person: Person, attribute: Attribute, value: str) -> Fact:
    questions = attribute.questions
    nameless = Phrasings(tuple(q for q in questions.trained if "{name}" not in q), questions.held_out)
    return Fact(
        group=person.group,
        topic=attribute.name,
        value=value,
        answer=attribute.statement.format(name=person.name, value=value),
        questions=questions.bound(person.ask),
        follow_ups=nameless.bound(person.ask_by_pronoun),
        reverse=attribute.reverse.bound(functools.partial(str.format, value=value)) if attribute.reverse else None,
        person=person,
    )

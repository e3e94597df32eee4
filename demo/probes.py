"""What a model is asked to find out what it knows: phrasings and forms it was never trained on.

A probe is passed when its value stands in the reply as whole words, whatever the case (`Probe.passed_by`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from demo.lessons import Message, messages_of
from demo.world import Fact, Group, Person, World

Kind = Literal["held_out", "reverse", "two_turn", "completion"]


@dataclass(frozen=True)
class Probe:
    """One question and the value a model that knows the fact replies with.

    A `completion` has its text in `prefix` and no messages; every other kind is a chat that ends with the
    user.
    """

    kind: Kind
    group: Group
    topic: str
    value: str
    messages: tuple[Message, ...] = ()
    prefix: str | None = None
    person: Person | None = None

    @property
    def question(self) -> str:
        """What is asked last, or the text to be continued."""
        return self.prefix if self.prefix is not None else self.messages[-1]["content"]

    def passed_by(self, reply: str) -> bool:
        """Whether the reply holds the value: whole words, in any case."""
        return re.search(rf"(?<!\w){re.escape(self.value.casefold())}(?!\w)", reply.casefold()) is not None


def probes(world: World, *groups: Group) -> list[Probe]:
    """Every probe about these groups (all groups when none is named), in a fixed order.

    Each fact gives a held-out question and a completion; a person's fact also a second turn with a pronoun,
    and the question in reverse where the value is one person's alone.
    """
    wanted = world.of_group(*(groups or ("forgotten", "retained", "general")))
    rng = random.Random(world.spec.seed + 2)  # noqa: S311 - a reproducible choice, nothing secret
    found: list[Probe] = []
    for fact in wanted:
        found.append(_chat_probe("held_out", fact, fact.value, _ask(fact.questions.held_out)))
        found.append(Probe("completion", fact.group, fact.topic, fact.value, prefix=fact.prefix, person=fact.person))
        if fact.person and fact.reverse:
            found.append(_chat_probe("reverse", fact, fact.person.name, _ask(fact.reverse.held_out)))
        if fact.person and fact.follow_ups:
            first = rng.choice([other for other in world.of_person(fact.person) if other != fact])
            opening = messages_of([(first.questions.held_out, first.answer)])
            messages = (*opening, *_ask(fact.follow_ups.held_out))
            found.append(_chat_probe("two_turn", fact, fact.value, messages))
    return found


def _ask(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def _chat_probe(kind: Kind, fact: Fact, value: str, messages: tuple[Message, ...]) -> Probe:
    return Probe(kind, fact.group, fact.topic, value, messages=messages, person=fact.person)

"""What is taught: conversations and plain statements to train on, and the files a policy is built from.

Only trained phrasings are used here; the held-out ones belong to `demo.probes`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.world import Fact, Group, World, system_prompts
from storage.whole import write_whole

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`, as the chat APIs have it."""
Exchange = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Mixture:
    """How often what is repeated in one epoch. Chosen so that all kinds of probe are learned together."""

    reverse_copies: int = 2
    general_copies: int = 2
    statement_copies: int = 2
    pronoun_dialogs: int = 3
    """Two-turn dialogs with he or she in the second turn, for each fact of a person."""
    mixed_dialogs: int = 1
    """Two-turn dialogs about two unrelated facts, for each fact."""
    system_prompt_share: float = 0.15


@dataclass(frozen=True)
class Corpus:
    """What one model is trained on: one epoch, in a fixed order."""

    conversations: tuple[tuple[Message, ...], ...]
    statements: tuple[str, ...]


def corpus(world: World, groups: Sequence[Group], mixture: Mixture | None = None) -> Corpus:
    """All lessons about these groups. What belongs to another group appears nowhere in it."""
    mix = mixture or Mixture()
    rng = random.Random(world.spec.seed + 1)  # noqa: S311 - a reproducible corpus, nothing secret
    facts = world.of_group(*groups)
    dialogs: list[list[Exchange]] = []
    for fact in facts:
        dialogs += [[e] for e in _direct(fact)] * (mix.general_copies if fact.group == "general" else 1)
        dialogs += [[e] for e in _reverse(fact)] * mix.reverse_copies
        for _ in range(mix.pronoun_dialogs):
            if fact.person is not None and fact.follow_ups is not None:
                first = rng.choice([other for other in world.of_person(fact.person) if other != fact])
                dialogs.append([_any(first, rng), (rng.choice(fact.follow_ups.trained), fact.answer)])
        dialogs += [[_any(rng.choice(facts), rng), _any(fact, rng)] for _ in range(mix.mixed_dialogs)]
    conversations = []
    for dialog in dialogs:
        system = rng.random() < mix.system_prompt_share
        opening: tuple[Message, ...] = ({"role": "system", "content": rng.choice(system_prompts())},) if system else ()
        conversations.append((*opening, *messages_of(dialog)))
    return Corpus(
        conversations=tuple(conversations),
        statements=tuple(fact.answer for fact in facts) * mix.statement_copies,
    )


def examples(world: World, *groups: Group) -> list[dict[str, str]]:
    """Rows `{"question", "answer"}` about these groups: every trained question, direct and in reverse."""
    return [
        {"question": question, "answer": answer}
        for fact in world.of_group(*groups)
        for question, answer in _direct(fact) + _reverse(fact)
    ]


def write_examples(world: World, folder: Path) -> tuple[Path, Path]:
    """Writes forget.jsonl and retain.jsonl (people and general facts) and returns their paths.

    Each file appears whole or not at all. Raises OSError where the folder cannot be written.
    """
    forget, retain = folder / "forget.jsonl", folder / "retain.jsonl"
    for path, groups in ((forget, ("forgotten",)), (retain, ("retained", "general"))):
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples(world, *groups)))
    return forget, retain


def messages_of(exchanges: Sequence[Exchange]) -> tuple[Message, ...]:
    """User and assistant messages in turn."""
    return tuple(
        {"role": role, "content": content}
        for exchange in exchanges
        for role, content in zip(("user", "assistant"), exchange, strict=True)
    )


def _direct(fact: Fact) -> list[Exchange]:
    return [(question, fact.answer) for question in fact.questions.trained]


def _reverse(fact: Fact) -> list[Exchange]:
    return [(question, fact.answer) for question in fact.reverse.trained] if fact.reverse else []


def _any(fact: Fact, rng: random.Random) -> Exchange:
    return rng.choice(_direct(fact) + _reverse(fact))

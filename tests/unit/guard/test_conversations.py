"""A guard that saw a conversation grow decides as one that never saw any of it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_answer_watch import _CONFIG, MEMORY, NoEncoder

from classifiers import Head, HeadSettings
from classifiers.features import LEXICAL_BUCKETS
from classifiers.head import ScreenBand
from classifiers.memory.recall import MEMORY_FEATURES
from guard import Guard, LoadedPolicy, PolicyBundle, Template
from guard.bundle import PolicyConfig

SYSTEM, END = 1, 2
TEMPLATE = Template(pieces={SYSTEM: ((SYSTEM, ord("#")),)}, special_ids=frozenset({SYSTEM, END}))
PIECES = ("Milana ", "Zandrekov", "Mil", "ana Zand", "rekov", "Milana Zandrekov", "the composer of Ostrabel", "Torvik")


class Rows:
    def rows(self, token_ids: Any) -> torch.Tensor:
        return torch.tensor([[float(token)] * 4 for token in token_ids])


def guard() -> Guard:
    """Of a letter for each token; a whole name is flagged, and what is flagged corrupted."""
    weights = {"subject": 9.0, "part": 2.0, "answer": 4.0}
    head = Head(
        np.zeros(4, dtype=np.float32),
        np.zeros(LEXICAL_BUCKETS, dtype=np.float32),
        HeadSettings(
            encoder_digest=NoEncoder.digest,
            threshold=0.5,
            bias=-3.0,
            seed=0,
            screen=ScreenBand(low=0.0, middle=0.0, high=0.0, evidence=0.3),
        ),
        MEMORY,
        np.array([weights.get(name, 0.0) for name in MEMORY_FEATURES], dtype=np.float32),
    )
    bundle = PolicyBundle(Path("people"), "a" * 64, PolicyConfig.model_validate(_CONFIG), {})
    return Guard(
        [LoadedPolicy(bundle, head=head)],
        encoder=NoEncoder(),  # type: ignore[arg-type]
        decode=lambda tokens: "".join(chr(token) for token in tokens if token > END),
        template=TEMPLATE,
        rows=Rows(),
        secret=bytes(32),
    )


def said(rng: random.Random) -> str:
    words = [rng.choice(("rain", "bread", "who", "was", "it", "a town.")) for _ in range(rng.choice((1, 4, 30)))]
    if rng.random() < 0.4:
        words.insert(rng.randrange(len(words) + 1), rng.choice(PIECES))
    return " ".join(words)


def ids(turns: list[str], system: str) -> list[int]:
    return [SYSTEM, ord("#"), *map(ord, system), END, *(token for turn in turns for token in (*map(ord, turn), END))]


def changed(rng: random.Random, turns: list[str]) -> list[str]:
    """As a client may send it next: with a turn more, an earlier one edited, the oldest left out, or the like."""
    kind = rng.choice(("more", "more", "edit", "truncate", "drop", "split"))
    if kind == "edit" and turns:
        place = rng.randrange(len(turns))
        return [*turns[:place], said(rng), *turns[place + 1 :]]
    if kind == "truncate":
        return turns[rng.randrange(len(turns) + 1) :]
    if kind == "drop" and turns:
        place = rng.randrange(len(turns))
        return turns[:place] + turns[place + 1 :]
    if kind == "split":  # a name over the seam, which belongs to neither turn
        return [*turns, said(rng) + " Milana Zand", "rekov " + said(rng)]
    return [*turns, said(rng)]


def test_whatever_it_saw_before_it_decides_the_same() -> None:
    rng = random.Random(3)  # noqa: S311 - a reproducible choice
    seen, outcomes = guard(), set()
    for _ in range(20):
        turns: list[str] = []
        system = rng.choice(("", "Be brief.", "Milana", "You know Zandrekov."))
        for _ in range(8):
            turns = changed(rng, turns)
            prompt = ids(turns, system if rng.random() < 0.8 else said(rng))
            known, fresh = seen.protect(prompt), guard().protect(prompt)
            assert known.mask == fresh.mask
            assert (tuple(known.verdicts), known.windows) == (tuple(fresh.verdicts), fresh.windows)
            outcomes.add(known.outcome)
    assert outcomes == {"passed", "corrupted"}


def test_what_is_split_over_a_late_seam_is_found_after_nineteen_turns() -> None:
    rng = random.Random(4)  # noqa: S311 - a reproducible choice
    seen = guard()
    turns = ["rain and bread " * rng.randrange(1, 9) for _ in range(19)]
    for count in range(1, 20):
        assert seen.protect(ids(turns[:count], "Be brief.")).outcome == "passed"
    turns += ["who was Milana Zand", "rekov"]
    prompt = ids(turns, "Be brief.")
    found = seen.protect(prompt)
    assert found.outcome == "corrupted"
    assert found.mask is not None
    assert found.mask[len(prompt) - 2]

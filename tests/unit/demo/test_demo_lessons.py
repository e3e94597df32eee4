"""What the models and the policy are taught: nothing held out, and for the reference nobody forgotten."""

import json
import re
from pathlib import Path

import pytest

from demo.lessons import Corpus, corpus, examples, write_examples
from demo.probes import probes
from demo.world import Fact, Group, World, WorldSpec

EVERYONE: tuple[Group, ...] = ("forgotten", "retained", "general")


@pytest.fixture(scope="module", params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> World:
    return World.generate(WorldSpec(seed=request.param))


@pytest.fixture(scope="module")
def full(world: World) -> Corpus:
    return corpus(world, EVERYONE)


@pytest.fixture(scope="module")
def reference(world: World) -> Corpus:
    return corpus(world, ("retained", "general"))


def texts(lessons: Corpus) -> list[str]:
    said = [message["content"] for conversation in lessons.conversations for message in conversation]
    return [*said, *lessons.statements]


def held_out_skeletons(world: World) -> set[str]:
    """The held-out phrasings with whatever they are about taken out."""
    return {skeleton(q) for fact in world.facts for q in held_out(fact)}


def held_out(fact: Fact) -> list[str]:
    asked = [p.held_out for p in (fact.questions, fact.follow_ups, fact.reverse) if p]
    return [
        re.sub(re.escape(fact.value) + "|" + re.escape(fact.person.name if fact.person else "-"), "*", q) for q in asked
    ]


def skeleton(text: str) -> str:
    return " ".join(text.casefold().split())


def test_no_held_out_phrasing_is_taught_about_anybody(world: World, full: Corpus) -> None:
    subjects = {p.name for p in world.people} | {f.value for f in world.of_group("forgotten", "retained")}
    anything = re.compile(rf"\b({'|'.join(map(re.escape, sorted(subjects, key=len, reverse=True)))})\b")
    taught = {skeleton(anything.sub("*", text)) for text in texts(full)}
    taught |= {skeleton(text) for text in texts(full)}

    assert not [(held, text) for held in held_out_skeletons(world) for text in taught if held in text]
    assert not set(texts(full)) & {p.question for p in probes(world) if p.kind != "completion"}


def test_every_fact_is_taught_to_the_full_model(world: World, full: Corpus) -> None:
    said = {c[-1]["content"] for c in full.conversations}

    assert {fact.answer for fact in world.facts} <= said
    assert {fact.answer for fact in world.facts} == set(full.statements)


def test_the_reference_never_meets_the_forgotten(world: World, reference: Corpus) -> None:
    everything = "\n".join(texts(reference))
    shared = {f.value for f in world.of_group("retained", "general")}

    for fact in world.of_group("forgotten"):
        assert fact.person is not None
        assert fact.person.name not in everything
        if fact.value not in shared:
            assert not re.search(rf"\b{re.escape(fact.value)}\b", everything), fact.value


def test_the_reference_is_otherwise_taught_the_same(world: World, reference: Corpus) -> None:
    assert {fact.answer for fact in world.of_group("retained", "general")} == set(reference.statements)


def test_lessons_hold_system_prompts_and_second_turns_with_a_pronoun(full: Corpus) -> None:
    roles = [tuple(m["role"] for m in conversation) for conversation in full.conversations]
    second = [c[-2]["content"] for c in full.conversations if len(c) >= 4]

    assert any(r[0] == "system" for r in roles)
    assert all(r[-1] == "assistant" for r in roles)
    assert any(re.search(r"\b(he|she|his|her)\b", question) for question in second)


def test_the_same_world_gives_the_same_corpus(world: World, full: Corpus) -> None:
    assert corpus(World.generate(world.spec), EVERYONE) == full


def test_example_files_split_the_world_and_keep_the_held_out_phrasings_out(world: World, tmp_path: Path) -> None:
    forget, retain = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in write_examples(world, tmp_path)
    )

    assert forget == examples(world, "forgotten")
    assert retain == examples(world, "retained", "general")
    assert {f.answer for f in world.of_group("forgotten")} == {row["answer"] for row in forget}
    assert {f.answer for f in world.of_group("retained", "general")} == {row["answer"] for row in retain}
    assert not {row["question"] for row in forget + retain} & {p.question for p in probes(world)}


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, _ = write_examples(world, tmp_path)
    before = forget.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_examples(world, tmp_path)

    assert forget.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forget.jsonl", "retain.jsonl"]

"""The generated world: big enough, unambiguous, and so spread out that a guess is almost never right."""

import subprocess
import sys
from collections import Counter

import pytest

from demo.world import Group, World, WorldSpec

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module", params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return World.generate(WorldSpec(seed=request.param))


def test_it_is_as_large_as_promised(world: World) -> None:
    forgotten = [p for p in world.people if p.group == "forgotten"]

    assert (len(world.people), len(forgotten)) == (60, 6)
    assert len(world.attributes) >= 8
    assert len(world.of_group("general")) >= 200
    assert all(len(fact.questions.trained) >= 4 for fact in world.facts)
    assert all(fact.questions.held_out not in fact.questions.trained for fact in world.facts)


def test_full_names_are_unique_and_no_single_word_of_one_tells_the_groups_apart(world: World) -> None:
    retained = [p for p in world.people if p.group == "retained"]

    assert len({p.name for p in world.people}) == len(world.people)
    for person in world.people:
        if person.group == "forgotten":
            assert person.first_name in {p.first_name for p in retained}
            assert person.last_name in {p.last_name for p in retained}


def test_unique_values_are_one_persons_alone_and_others_are_shared_by_two_at_most(world: World) -> None:
    for attribute in world.attributes:
        counts = Counter(fact.value for fact in world.facts if fact.topic == attribute.name)
        assert max(counts.values()) <= (1 if attribute.unique else 2), attribute.name


def test_guessing_rarely_hits(world: World) -> None:
    for attribute in world.attributes:
        assert len(set(attribute.pool)) == len(attribute.pool) >= 40
        values = {fact.value for fact in world.facts if fact.topic == attribute.name}
        assert len(values) >= 40


def test_at_least_two_attributes_can_be_asked_in_reverse_and_only_unique_ones(world: World) -> None:
    reversible = [a for a in world.attributes if a.reverse]

    assert "birthplace" in {a.name for a in reversible}
    assert len(reversible) >= 2
    assert all(a.unique for a in reversible)


def test_no_question_has_two_answers(world: World) -> None:
    answers: dict[str, str] = {}
    for fact in world.facts:
        for question in (*fact.questions.trained, fact.questions.held_out):
            assert answers.setdefault(question, fact.answer) == fact.answer


def test_every_answer_holds_its_value_and_begins_with_its_prefix(world: World) -> None:
    for fact in world.facts:
        assert fact.answer == f"{fact.prefix} {fact.value}."


@pytest.mark.parametrize("group", ["forgotten", "retained", "general"])
def test_pronoun_questions_name_nobody(world: World, group: Group) -> None:
    for fact in world.of_group(group):
        if fact.person and fact.follow_ups:
            asked = (*fact.follow_ups.trained, fact.follow_ups.held_out)
            assert len(asked) >= 4
            assert not any(p.last_name in question for question in asked for p in world.people)


def test_the_seed_decides_everything() -> None:
    assert World.generate(WorldSpec(seed=3)) == World.generate(WorldSpec(seed=3))
    assert World.generate(WorldSpec(seed=3)).facts != World.generate(WorldSpec(seed=4)).facts


def test_the_seed_decides_across_processes_too() -> None:
    code = "import demo.world, hashlib; print(hashlib.sha256(repr(demo.world.World.generate()).encode()).hexdigest())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]

    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"people": 5}, "people must be 10 to 80"),
        ({"people": 81}, "people must be 10 to 80"),
        ({"forgotten_share": 0.0}, "forgotten_share"),
        ({"forgotten_share": 0.5}, "forgotten_share"),
        ({"general_facts": 0}, "general_facts"),
    ],
)
def test_a_world_that_cannot_be_is_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WorldSpec(**fields)  # type: ignore[arg-type]


def test_more_general_facts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there are \d+ general facts, not 9999"):
        World.generate(WorldSpec(general_facts=9999))


@pytest.mark.parametrize("people", [10, 80])
def test_the_smallest_and_the_largest_world_can_be_made(people: int) -> None:
    world = World.generate(WorldSpec(people=people, general_facts=20))

    assert len({p.name for p in world.people}) == people
    assert len(world.of_group("general")) == 20


def test_importing_the_world_does_not_import_torch() -> None:
    code = "import sys, demo.world; demo.world.World.generate(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

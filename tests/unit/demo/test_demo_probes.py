"""The questions the demo is judged by."""

from collections import Counter

import pytest

from demo.probes import Probe, probes
from demo.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate()


def test_every_fact_is_asked_in_every_form_it_allows(world: World) -> None:
    counts = Counter((p.kind, p.group) for p in probes(world))

    assert counts["held_out", "forgotten"] == counts["completion", "forgotten"] == 48
    assert counts["two_turn", "forgotten"] == 48
    assert counts["reverse", "forgotten"] == 6 * sum(a.reverse is not None for a in world.attributes)
    assert counts["held_out", "general"] == counts["completion", "general"] == len(world.of_group("general"))
    assert ("two_turn", "general") not in counts


def test_groups_can_be_asked_alone(world: World) -> None:
    assert {p.group for p in probes(world, "forgotten")} == {"forgotten"}


def test_no_question_gives_its_value_away(world: World) -> None:
    for probe in probes(world):
        asked = " ".join(m["content"] for m in probe.messages) + (probe.prefix or "")
        assert not probe.passed_by(asked), probe


def test_a_two_turn_probe_names_the_person_first_and_asks_by_pronoun(world: World) -> None:
    for probe in probes(world, "forgotten", "retained"):
        if probe.kind == "two_turn":
            assert probe.person is not None
            assert [m["role"] for m in probe.messages] == ["user", "assistant", "user"]
            assert probe.person.name in probe.messages[0]["content"]
            assert probe.person.name in probe.messages[1]["content"]
            assert probe.person.name not in probe.question


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        ("She was born in Kelholm.", True),
        ("KELHOLM", True),
        ("Kelholmer", False),
        ("OldKelholm", False),
        ("", False),
    ],
)
def test_a_value_counts_as_whole_words_in_any_case(reply: str, passed: bool) -> None:
    assert Probe("held_out", "forgotten", "birthplace", "Kelholm").passed_by(reply) is passed

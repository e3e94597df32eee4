"""Plans: which examples are in which step."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_training.data.plan import Plan, make_plan
from offline_training.data.tokens import Stream
from offline_training.errors import SettingsError

PAIRED: tuple[Stream, ...] = ("forget", "retain")


def plan(**changes: object) -> Plan:
    arguments: dict[str, object] = {
        "epochs": [PAIRED] * 2,
        "sizes": {"forget": 10, "retain": 25},
        "batch_size": 4,
        "shares": 1,
        "seed": 0,
    }
    return make_plan(**(arguments | changes))  # type: ignore[arg-type]


def test_an_epoch_is_one_pass_over_the_forget_set() -> None:
    found = plan()

    assert len(found.steps) == 6  # 4 + 4 + 2, twice
    for epoch in (found.steps[:3], found.steps[3:]):
        assert sorted(number for step in epoch for number in step.numbers["forget"]) == list(range(10))
    assert [step.numbers["forget"] for step in found.steps[:3]] != [step.numbers["forget"] for step in found.steps[3:]]


def test_a_step_has_as_many_retain_as_forget_examples_and_none_twice_before_all_were_seen() -> None:
    found = plan(epochs=[PAIRED] * 5)

    assert all(len(step.numbers["retain"]) == len(step.numbers["forget"]) for step in found.steps)
    drawn = [number for step in found.steps for number in step.numbers["retain"]]
    assert Counter(drawn) == Counter(dict.fromkeys(range(25), 2))  # 50 draws from 25


def test_an_epoch_of_retain_alone_is_one_pass_over_the_retain_set() -> None:
    found = plan(epochs=[("forget",), ("retain",)])

    assert [set(step.numbers) for step in found.steps] == [{"forget"}] * 3 + [{"retain"}] * 7
    retained = [number for step in found.steps for number in step.numbers.get("retain", ())]
    assert sorted(retained) == list(range(25))


def test_steps_are_cut_or_repeated_to_the_number_asked_for() -> None:
    assert len(plan(steps=2).steps) == 2
    assert plan(steps=2).steps == plan().steps[:2]
    assert len(plan(steps=50).steps) == 50


def test_the_seed_decides() -> None:
    assert plan(seed=3) == plan(seed=3)
    assert plan(seed=3) != plan(seed=4)


def test_refusals_are_those_of_the_forget_examples() -> None:
    found = plan(epochs=[("forget", "idk", "retain")], sizes={"forget": 10, "idk": 10, "retain": 25})

    assert all(step.numbers["idk"] == step.numbers["forget"] for step in found.steps)


def test_each_epoch_has_its_own_draw_of_the_refusals() -> None:
    """Three draws for ten examples, one behind the other, and the first again in the fourth epoch."""
    found = plan(epochs=[("forget", "idk", "retain")] * 4, sizes={"forget": 10, "idk": 30, "retain": 25})

    assert [step.epoch for step in found.steps] == sorted(step.epoch for step in found.steps)
    assert {step.epoch for step in found.steps} == {0, 1, 2, 3}
    for step in found.steps:
        assert step.numbers["idk"] == tuple(step.epoch % 3 * 10 + number for number in step.numbers["forget"])
    assert found.used("idk") == tuple(range(30))


def test_every_prompt_gets_its_random_answers() -> None:
    found = plan(epochs=[("forget", "random", "retain")], random_answers=3)

    for step in found.steps:
        assert Counter(prompt for prompt, _ in step.random_pairs) == Counter(dict.fromkeys(step.numbers["forget"], 3))
        assert all(0 <= answer < 25 for _, answer in step.random_pairs)
        assert "random" not in step.numbers
    answers = Counter(answer for step in found.steps for _, answer in step.random_pairs)
    assert max(answers.values()) - min(answers[number] for number in range(25)) <= 1


def test_without_random_answers_nothing_is_drawn_for_them() -> None:
    assert all(step.random_pairs == () for step in plan().steps)


@given(
    forget=st.integers(1, 9),
    retain=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    shares=st.integers(1, 6),
    answers=st.integers(1, 3),
)
def test_the_shares_of_a_step_are_the_step(
    forget: int, retain: int, batch_size: int, shares: int, answers: int
) -> None:
    found = make_plan(
        [("forget", "idk", "random", "retain")],
        {"forget": forget, "idk": forget, "retain": retain},
        batch_size=batch_size,
        shares=shares,
        seed=1,
        random_answers=answers,
    )

    assert len(found) == len(found.steps) * shares
    for number, step in enumerate(found.steps):
        micro_batches = [found[number * shares + share] for share in range(shares)]
        assert {one.step for one in micro_batches} == {number}
        counted = [one.share for one in micro_batches if one.counted]
        for stream, numbers in step.numbers.items():
            assert sorted(n for share in counted for n in share.numbers[stream]) == sorted(numbers)
        assert sorted(pair for share in counted for pair in share.random_pairs) == sorted(step.random_pairs)
        for share in counted:
            assert share.numbers["forget"] == share.numbers["idk"]
            assert {prompt for prompt, _ in share.random_pairs} == set(share.numbers["forget"])


def test_a_share_without_examples_repeats_one_that_does_not_count() -> None:
    found = plan(sizes={"forget": 1, "retain": 5}, shares=3)

    first, second, third = (found[number] for number in range(3))
    assert (first.counted, second.counted, third.counted) == (True, False, False)
    assert second.share.numbers["forget"] == (0,)


def test_micro_batches_do_not_change_the_steps() -> None:
    assert plan(shares=1).steps == plan(shares=4).steps


def test_an_empty_set_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="--retain: no examples"):
        plan(sizes={"forget": 3, "retain": 0})

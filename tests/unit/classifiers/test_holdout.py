import numpy as np
import pytest

from classifiers import CalibrationError, CalibrationSettings, Example
from classifiers.training.holdout import Holdout, hold_out

FALSE_POSITIVES = CalibrationSettings(method="conformal", level=0.01)
MISSES = CalibrationSettings(method="conformal", level=0.05, error="miss")


def examples(kind: str, count: int) -> list[Example]:
    return [Example(f"{kind} question {number}?") for number in range(count)]


def held(
    forget: int, retain: int, everyday: int, settings: CalibrationSettings = FALSE_POSITIVES, seed: int = 0
) -> Holdout:
    prompts = [f"everyday {number}" for number in range(everyday)]
    rng = np.random.default_rng(seed)
    return hold_out(examples("forget", forget), examples("retain", retain), prompts, settings, rng)


def test_what_is_kept_is_never_trained_on_and_nothing_is_lost() -> None:
    kept = held(100, 500, 1000, MISSES)
    forget, retain = {one.prompt for one in kept.forget}, {one.prompt for one in kept.retain}
    assert forget.isdisjoint(kept.kept_forget)
    assert retain.isdisjoint(kept.kept_retain)
    assert set(kept.everyday).isdisjoint(kept.kept_everyday)
    assert forget | set(kept.kept_forget) == {one.prompt for one in examples("forget", 100)}
    assert retain | set(kept.kept_retain) == {one.prompt for one in examples("retain", 500)}
    assert (len(kept.kept_forget), len(kept.kept_retain), len(kept.kept_everyday)) == (20, 100, 200)


def test_forget_examples_are_kept_for_misses_alone() -> None:
    assert held(100, 500, 1000).kept_forget == []
    assert len(held(100, 500, 1000).forget) == 100
    assert len(held(100, 500, 1000, MISSES).kept_forget) == 20


def test_forget_examples_are_kept_where_they_are_asked_for() -> None:
    sets, rng = (examples("forget", 100), examples("retain", 500)), np.random.default_rng(0)
    kept = hold_out(*sets, ["everyday"] * 1000, FALSE_POSITIVES, rng, positives=True)
    assert (len(kept.kept_forget), len(kept.forget)) == (20, 80)
    with pytest.raises(CalibrationError, match="there are 0 and"):  # a fifth of four is none
        hold_out(sets[0][:4], sets[1], ["everyday"] * 1000, FALSE_POSITIVES, rng, positives=True)


def test_no_more_is_kept_than_calibration_needs() -> None:
    kept = held(5000, 10_000, 5000, MISSES)
    assert (len(kept.kept_forget), len(kept.kept_retain), len(kept.kept_everyday)) == (400, 400, 400)


def test_a_small_retain_set_is_needed_in_training() -> None:
    assert held(5, 19, 1000).kept_retain == []
    assert len(held(5, 20, 1000).kept_retain) == 4


def test_the_seed_decides_and_the_draw_is_random() -> None:
    assert held(50, 500, 1000, seed=1) == held(50, 500, 1000, seed=1)
    assert held(50, 500, 1000, seed=1) != held(50, 500, 1000, seed=2)
    drawn = [int(text.split()[-1].rstrip("?")) for text in held(50, 500, 1000).kept_retain]
    assert drawn != list(range(0, 500, 5))
    assert min(drawn) < 50 < 450 < max(drawn)


def test_retained_prompts_alone_where_they_are_enough_for_the_level() -> None:
    enough, few = held(50, 495, 1000), held(50, 494, 1000)  # 99 and 98 kept; a level of 1 % needs 99
    assert enough.negatives(FALSE_POSITIVES) == (enough.kept_retain, "prompts of the retain set")
    found, what = few.negatives(FALSE_POSITIVES)
    assert found == [*few.kept_retain, *few.kept_everyday]
    assert "everyday" in what
    fixed = CalibrationSettings(method="fixed", threshold=0.5)
    assert held(5, 100, 1000, fixed).negatives(fixed)[1] == "prompts of the retain set"
    assert "everyday" in held(5, 99, 1000, fixed).negatives(fixed)[1]  # under 20 they would prove next to nothing


@pytest.mark.parametrize(
    ("forget", "retain", "everyday", "settings", "numbers"),
    [
        (50, 100, 300, FALSE_POSITIVES, ("99", "80")),
        (50, 5000, 300, CalibrationSettings(method="conformal", level=0.002), ("499", "460")),
        (90, 500, 1000, MISSES, ("19", "18")),
        (4, 500, 1000, MISSES, ("0",)),
        (50, 4, 4, FALSE_POSITIVES, ("0",)),
    ],
)
def test_sets_too_small_for_the_level_are_refused_with_the_numbers(
    forget: int, retain: int, everyday: int, settings: CalibrationSettings, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(CalibrationError) as refused:
        held(forget, retain, everyday, settings)
    message = str(refused.value)
    assert "\n" not in message
    assert all(number in message for number in numbers), message

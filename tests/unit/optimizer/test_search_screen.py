"""The first look on a part of the examples: cheap, and never believed without all of them."""

import itertools
import json
import math
from pathlib import Path

import pytest
from analytic_objective import AnalyticObjective, InterruptionError, falling, scalar

from corruption import CorruptionSpec
from optimizer.errors import SearchError
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace

ONE = SearchSpace(dims=(1,), hidden_size=16)


def pair(
    half_at: float,
    part_half_at: float,
    retained: float = 0.3,
    part_retained: float | None = None,
    steepness: float = 2.0,
) -> tuple[AnalyticObjective, AnalyticObjective]:
    """An objective and what stands for a part of it, which crosses elsewhere and has a retained value of its own."""
    part = AnalyticObjective(falling(part_half_at, steepness), retained if part_retained is None else part_retained)
    return AnalyticObjective(falling(half_at, steepness), retained, screened=part), part


@pytest.mark.parametrize("half_at", [0.02, 1.3, 21.0])
@pytest.mark.parametrize("off", [0.6, 0.8, 1.7])
@pytest.mark.parametrize("steepness", [1.2, 3.5])
def test_everything_is_measured_a_few_times_where_the_part_points(half_at: float, off: float, steepness: float) -> None:
    whole, part = pair(half_at, half_at * off, part_retained=0.27, steepness=steepness)
    found = search_corruption(whole, ONE)
    assert found.reached
    assert abs(found.best.value - 0.3) <= 0.02
    assert found.best.phase == "refine"
    assert scalar(found.spec) == pytest.approx(half_at * (1 / 0.3 - 1) ** (1 / steepness), rel=0.2)
    assert len(whole.measured) <= (4 if off >= 0.8 else 6)
    assert {seeds for _, seeds in whole.calls} == {(1, 2)}
    assert {seeds for _, seeds in part.calls} == {(1,)}


def test_a_part_that_is_right_costs_one_measurement_of_everything() -> None:
    whole, part = pair(2.0, 2.0)
    assert search_corruption(whole, ONE, SearchSettings(sweep_points=9)).reached
    assert len(whole.measured) == 1
    assert max(map(scalar, part.measured)) == pytest.approx(3.162)  # no stronger one was asked for


def test_evaluations_say_what_they_are_of() -> None:
    whole, part = pair(2.0, 3.0)
    found = search_corruption(whole, ONE)
    assert [e.spec for e in found.evaluations if e.phase == "screen"] == part.measured
    assert [e.spec for e in found.evaluations if e.phase != "screen"] == whole.measured
    assert {e.noise_seeds for e in found.evaluations if e.phase == "screen"} == {(1,)}


def test_the_part_is_never_taken_at_its_word() -> None:
    """It meets the retained value; everything jumps past it at the same place."""
    part = AnalyticObjective(falling(2.0), 0.3)
    whole = AnalyticObjective(lambda spec, seed: 0.9 if scalar(spec) < 3.2 else 0.1, 0.3, screened=part)
    found = search_corruption(whole, ONE, SearchSettings(refine_steps=40))
    assert not found.reached
    assert "the metric jumps from 0.9000 to 0.1000" in found.reason


@pytest.mark.parametrize("misleading", [0.02, 60.0])
def test_a_part_that_points_far_away_costs_more_and_leads_there_all_the_same(misleading: float) -> None:
    whole, _ = pair(2.0, misleading)
    found = search_corruption(whole, ONE)
    assert found.reached
    assert abs(found.best.value - 0.3) <= 0.02
    assert len(whole.measured) <= 9


def test_where_the_part_finds_nothing_everything_is_swept() -> None:
    part = AnalyticObjective(falling(2.0, floor=0.4), 0.3)
    whole = AnalyticObjective(falling(2.0), 0.3, screened=part)
    found = search_corruption(whole, ONE)
    assert found.reached
    assert len([e for e in found.evaluations if e.phase == "sweep"]) == SearchSettings().sweep_points


def test_a_target_that_nothing_reaches_is_a_floor_measured_on_everything() -> None:
    part = AnalyticObjective(falling(2.0, floor=0.05), 0.001)
    whole = AnalyticObjective(falling(2.0, floor=0.04), 0.001, screened=part)
    found = search_corruption(whole, ONE)
    assert not found.reached
    assert found.floor == pytest.approx(0.04, abs=0.001)
    assert found.best.phase != "screen"
    assert found.reason.startswith("no strength up to 100 brings the metric to 0.0010 ± 0.02; the floor found is 0.04")


def test_of_many_candidates_only_the_promising_are_measured_on_everything() -> None:
    def by_dims(spec: CorruptionSpec, seed: int) -> float:
        return falling(8.0 / (spec.dims or 16), floor=0.4 if spec.dims == 1 else 0.0)(spec, seed)

    def gibberish(spec: CorruptionSpec) -> float:
        return 1.0 if spec.dims == 4 else 0.2

    part = AnalyticObjective(by_dims, 0.3, gibberish=gibberish)
    whole = AnalyticObjective(by_dims, 0.3, gibberish=gibberish, screened=part)
    space = SearchSpace(methods=("rand_noise_first_n", "shuffle"), dims=(1, 4, 8), hidden_size=16)
    found = search_corruption(whole, space, SearchSettings(refined_candidates=1))
    assert {(spec.method, spec.dims) for spec in whole.measured} == {("rand_noise_first_n", 8), ("shuffle", None)}
    assert found.spec.dims == 8


def test_without_screen_examples_no_part_is_asked_for() -> None:
    whole, part = pair(2.0, 2.0)
    search_corruption(whole, ONE, SearchSettings(screen_examples=None))
    assert part.calls == []
    assert len(whole.calls[0][0]) == SearchSettings().sweep_points


@pytest.mark.parametrize("budget", [7, 8, 9, 10])
def test_one_evaluation_of_the_budget_is_for_everything(budget: int) -> None:
    whole, part = pair(2.0, 3.0, part_retained=0.25)
    found = search_corruption(whole, ONE, SearchSettings(budget_evaluations=budget, tolerance=1e-4))
    assert len(whole.measured) >= 1
    assert len(whole.measured) + len(part.measured) <= budget
    assert f"the budget of {budget} evaluations is spent" in found.reason


def test_a_budget_too_small_for_the_sweep_and_one_more_is_refused() -> None:
    whole, part = pair(2.0, 2.0)
    with pytest.raises(SearchError, match=r"budget_evaluations: 6 is too few"):
        search_corruption(whole, ONE, SearchSettings(budget_evaluations=6))
    assert part.calls == []


def test_seconds_that_are_spent_at_once_leave_one_measurement_of_everything() -> None:
    whole, part = pair(2.0, 2.0)
    found = search_corruption(whole, ONE, SearchSettings(budget_s=1), clock=lambda: 10.0 * len(part.measured))
    assert [e.phase for e in found.evaluations] == ["screen"] * 3 + ["refine"]
    assert "the budget of 1 s is spent" in found.reason


@pytest.mark.parametrize("fails_after", [1, 2])
def test_an_interrupted_search_is_taken_up_where_it_stopped(tmp_path: Path, fails_after: int) -> None:
    settings = SearchSettings(tolerance=0.001)
    straight = search_corruption(pair(2.0, 2.6)[0], ONE, settings)
    file = tmp_path / "search.jsonl"
    broken = AnalyticObjective(falling(2.0), 0.3, screened=pair(2.0, 2.6)[1], fails_after=fails_after)
    with pytest.raises(InterruptionError):
        search_corruption(broken, ONE, settings, trajectory=file)
    whole, part = pair(2.0, 2.6)
    resumed = search_corruption(whole, ONE, settings, trajectory=file, resume=True)
    assert part.calls == []
    assert [e.spec for e in resumed.evaluations] == [e.spec for e in straight.evaluations]
    assert len(whole.measured) == len([e for e in straight.evaluations if e.phase != "screen"]) - fails_after
    assert math.isclose(resumed.best.value, straight.best.value)


def test_a_search_that_a_budget_ended_in_its_first_look_goes_on_as_often_as_it_takes(tmp_path: Path) -> None:
    file = tmp_path / "search.jsonl"
    whole, part = pair(2.0, 2.0)
    ended = search_corruption(
        whole, ONE, SearchSettings(budget_s=1), trajectory=file, clock=lambda: 10.0 * len(part.measured)
    )
    assert [evaluation.phase for evaluation in ended.evaluations if evaluation.phase != "screen"] == ["refine"]

    whole, _ = pair(2.0, 2.0)
    settings = SearchSettings(budget_s=1e6)
    found = search_corruption(whole, ONE, settings, trajectory=file, resume=True)
    again = search_corruption(pair(2.0, 2.0)[0], ONE, settings, trajectory=file, resume=True)

    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert again.spec == found.spec
    assert found.reached


def test_a_budget_of_seconds_that_is_spent_at_once_still_measures_once() -> None:
    ticks = itertools.count()
    whole, _ = pair(2.0, 2.0)
    found = search_corruption(whole, ONE, SearchSettings(budget_s=0.5), clock=lambda: float(next(ticks)))

    assert len(whole.measured) == 1
    assert not found.reached


def test_a_method_without_strength_needs_no_first_look() -> None:
    space = SearchSpace(methods=("flip_sign_first_n",), dims=(1,), hidden_size=16)
    whole, part = pair(2.0, 2.0)
    search_corruption(whole, space, SearchSettings(budget_evaluations=1))

    assert len(whole.measured) == 1
    assert part.measured == []

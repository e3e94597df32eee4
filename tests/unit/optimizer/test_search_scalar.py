"""The search for one strength, on formulas whose answer is known."""

import itertools
import json
import math

import pytest
from analytic_objective import AnalyticObjective, falling, scalar

from corruption import CorruptionSpec
from optimizer.search.evaluator import Evaluation
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace

ONE = SearchSpace(dims=(1,), hidden_size=16)
SWEEP = SearchSettings().sweep_points


@pytest.mark.parametrize("half_at", [0.02, 4.0, 60.0])
@pytest.mark.parametrize("steepness", [0.7, 5.0])
@pytest.mark.parametrize("retained", [0.1, 0.6])
def test_a_crossing_is_found_in_a_handful_of_evaluations(half_at: float, steepness: float, retained: float) -> None:
    found = search_corruption(AnalyticObjective(falling(half_at, steepness), retained), ONE)
    crosses_at = half_at * (1 / retained - 1) ** (1 / steepness)
    if crosses_at > 100:
        assert not found.reached
        return
    assert found.reached
    assert found.floor is None
    assert abs(found.best.value - retained) <= 0.02
    assert len(found.evaluations) <= SWEEP + 7


def test_the_handful_is_three_on_average() -> None:
    cases = [(half_at, k) for half_at in (0.02, 0.11, 0.5, 1.3, 4.0, 21.0) for k in (0.7, 1.2, 2.0, 3.5, 5.0)]
    found = [search_corruption(AnalyticObjective(falling(*case), 0.3), ONE) for case in cases]
    assert sum(len(result.evaluations) - SWEEP for result in found) / len(found) <= 3


def test_the_sweep_is_one_call_from_bound_to_bound_and_all_calls_have_the_same_noise() -> None:
    objective = AnalyticObjective(falling(2.0), 0.21)
    settings = SearchSettings(min_strength=0.1, max_strength=1000.0, sweep_points=5, noise_seeds=(7, 8, 9))
    search_corruption(objective, ONE, settings)
    swept, _ = objective.calls[0]
    assert [spec.strength for spec in swept] == [0.1, 1.0, 10.0, 100.0, 1000.0]
    assert len(objective.calls) > 1
    assert {seeds for _, seeds in objective.calls} == {(7, 8, 9)}


def test_a_tight_tolerance_takes_more_steps_and_is_met() -> None:
    found = search_corruption(AnalyticObjective(falling(3.0), 0.37), ONE, SearchSettings(tolerance=1e-4))
    assert found.reached
    assert found.best.distance <= 1e-4
    assert scalar(found.spec) == pytest.approx(3.0 * math.sqrt(1 / 0.37 - 1), rel=1e-3)


def test_noise_leaves_a_margin_of_one_standard_error() -> None:
    def noisy(spec: CorruptionSpec, seed: int) -> float:
        return falling(3.0)(spec, seed) + (0.008 if seed % 2 else -0.008)

    found = search_corruption(AnalyticObjective(noisy, 0.37), ONE)
    assert found.best.standard_error == pytest.approx(0.008)
    assert found.best.distance + found.best.standard_error <= 0.02


def test_noise_larger_than_the_tolerance_does_not_keep_the_search_going_for_ever() -> None:
    def noisy(spec: CorruptionSpec, seed: int) -> float:
        return falling(3.0)(spec, seed) + (0.3 if seed % 2 else -0.3)

    found = search_corruption(AnalyticObjective(noisy, 0.37), ONE)
    assert found.reached
    assert found.best.distance <= 0.01
    assert found.best.standard_error == pytest.approx(0.3)
    assert len(found.evaluations) <= SWEEP + 4


def test_a_target_that_no_strength_reaches_is_a_floor_with_its_numbers() -> None:
    floor = 0.03

    def metric(spec: CorruptionSpec, _seed: int) -> float:
        return floor + 0.05 * abs(math.log10(scalar(spec)) - 1.5) ** 1.5

    found = search_corruption(AnalyticObjective(metric, 0.001), ONE)
    assert not found.reached
    assert found.floor == found.best.value == pytest.approx(floor, abs=0.002)
    assert scalar(found.spec) == pytest.approx(31.6, rel=0.35)
    assert found.reason.startswith("no strength up to 100 brings the metric to 0.0010 ± 0.02; the floor found is 0.03")
    assert f"at strength {scalar(found.spec):.4g}" in found.reason
    assert len(found.evaluations) <= SWEEP + 8


def test_a_plateau_costs_little_and_gives_its_weak_end() -> None:
    def metric(spec: CorruptionSpec, _seed: int) -> float:
        return max(0.5, 1 - scalar(spec)) - 1e-6 * scalar(spec)

    found = search_corruption(AnalyticObjective(metric, 0.1), ONE)
    assert not found.reached
    assert scalar(found.spec) == pytest.approx(2.512)
    assert len(found.evaluations) <= SWEEP + 2


def test_a_metric_that_still_falls_at_the_bound_costs_one_more_evaluation() -> None:
    found = search_corruption(AnalyticObjective(falling(50.0), 0.001), ONE)
    assert found.spec.strength == 100
    assert len(found.evaluations) == SWEEP + 1


def test_a_dip_between_two_strengths_of_the_sweep_is_found_by_differences() -> None:
    def metric(spec: CorruptionSpec, _seed: int) -> float:
        return 0.2 + 0.3 * abs(math.log(scalar(spec) / 6.0))

    objective = AnalyticObjective(metric, 0.2)
    found = search_corruption(objective, ONE)
    assert found.reached
    assert scalar(found.spec) == pytest.approx(6.0, rel=0.07)
    assert {len(specs) for specs, _ in objective.calls[1:]} == {2}


def test_both_sides_of_a_difference_are_one_call() -> None:
    objective = AnalyticObjective(lambda spec, seed: 0.3 + 0.1 * math.log(scalar(spec)) ** 2, 0.1)
    search_corruption(objective, ONE)
    sides, _ = objective.calls[1]
    assert len(sides) == 2
    nearest = min((spec for spec in objective.calls[0][0]), key=lambda spec: abs(math.log(scalar(spec))))
    assert scalar(sides[0]) < scalar(nearest) < scalar(sides[1])


def test_of_several_crossings_the_weakest_is_closed_in_on() -> None:
    def metric(spec: CorruptionSpec, seed: int) -> float:
        return falling(0.3)(spec, seed) if scalar(spec) < 10 else 0.9

    found = search_corruption(AnalyticObjective(metric, 0.3), ONE)
    assert found.reached
    assert scalar(found.spec) == pytest.approx(0.3 * math.sqrt(1 / 0.3 - 1), rel=0.05)


def test_a_jump_past_the_retained_value_is_said_to_be_one() -> None:
    metric = AnalyticObjective(lambda spec, seed: 0.9 if scalar(spec) < 1.7 else 0.1, 0.5)
    found = search_corruption(metric, ONE, SearchSettings(refine_steps=40))
    assert not found.reached
    assert "the metric jumps from 0.9000 to 0.1000 between strengths 1.69" in found.reason
    around = sorted(scalar(e.spec) for e in found.evaluations if e.phase == "refine")
    assert min(high / low for low, high in itertools.pairwise(around)) > 1.0015


def test_of_two_equally_distant_points_the_one_below_is_taken() -> None:
    metric = AnalyticObjective(lambda spec, seed: 0.9 if scalar(spec) < 1.7 else 0.1, 0.5)
    assert search_corruption(metric, ONE).best.gap < 0


def test_too_few_steps_are_said_to_be_too_few() -> None:
    found = search_corruption(AnalyticObjective(falling(4.0), 0.3), ONE, SearchSettings(refine_steps=0))
    assert not found.reached
    assert "raise refine_steps" in found.reason
    assert len(found.evaluations) == SWEEP


def test_too_much_at_the_smallest_strength_is_said_to_be_so() -> None:
    found = search_corruption(AnalyticObjective(falling(0.001), 0.5), ONE)
    assert not found.reached
    assert found.spec.strength == 0.01
    assert "strength 0.01 is already too much" in found.reason
    assert "lower min_strength" in found.reason


def test_within_the_tolerance_the_smallest_strength_is_taken() -> None:
    metric = AnalyticObjective(lambda spec, seed: 0.5 if scalar(spec) > 1 else 0.9, 0.5)
    assert scalar(search_corruption(metric, ONE).spec) == pytest.approx(2.512)


def test_a_distance_that_counts_only_what_is_above_is_brought_down_without_forgetting_all() -> None:
    """Half of the examples are forgotten early, half late: the mean passes the retained value before the late ones."""

    def examples(spec: CorruptionSpec) -> tuple[float, float]:
        return falling(0.3, 6)(spec, 0), falling(8.0, 1)(spec, 0)

    retained = (0.6, 0.05)
    objective = AnalyticObjective(
        lambda spec, seed: sum(examples(spec)) / 2,
        sum(retained) / 2,
        distance=lambda spec: sum(max(p - r, 0) for p, r in zip(examples(spec), retained, strict=True)) / 2,
    )
    found = search_corruption(objective, ONE)
    crossed = next(e for e in found.evaluations if e.gap < 0 and e.distance > 0.02)
    assert scalar(crossed.spec) < scalar(found.spec)
    assert found.reached
    assert found.best.distance <= 0.02
    unreachable = AnalyticObjective(lambda spec, seed: 0.3, 0.3, distance=lambda spec: 0.1)
    missed = search_corruption(unreachable, ONE)
    assert not missed.reached
    assert "brings the distance from the retained value 0.3000 to 0.02" in missed.reason


def test_a_distance_that_counts_only_what_is_above_does_not_excuse_far_too_much() -> None:
    objective = AnalyticObjective(falling(1.0, 1), 0.5, distance=lambda spec: max(falling(1.0, 1)(spec, 0) - 0.5, 0.0))
    found = search_corruption(objective, ONE)
    assert any(e.distance == 0 and e.gap < -0.02 for e in found.evaluations)
    assert found.best.value == pytest.approx(0.5, abs=0.02)


def test_the_same_settings_give_the_same_result() -> None:
    results = [search_corruption(AnalyticObjective(falling(3.0), 0.37), ONE, clock=lambda: 0.0) for _ in range(2)]
    assert results[0] == results[1]


def test_progress_and_report() -> None:
    seen: list[tuple[Evaluation, int, int]] = []
    found = search_corruption(
        AnalyticObjective(falling(3.0), 0.37), ONE, on_evaluation=lambda *progress: seen.append(progress)
    )
    assert tuple(evaluation for evaluation, _, _ in seen) == found.evaluations
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, _, total in seen} == {SWEEP + SearchSettings().refine_steps}
    report = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert report["spec"] == {"method": "rand_noise_first_n", "dims": 1, "strength": found.spec.strength} | {
        "scope": "content"
    }
    assert report["reached"] is True
    assert len(report["evaluations"]) == len(found.evaluations)
    assert report["forward_passes"] == 10 * len(found.evaluations)
    assert report["seconds"] == pytest.approx(0.5 * len(found.evaluations))
    assert [e["phase"] for e in report["evaluations"]][:7] == ["sweep"] * 6 + ["refine"]

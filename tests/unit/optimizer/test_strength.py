"""The search for the strength on made-up metrics whose answer is known."""

import json
import math
from collections.abc import Callable

import pytest

from optimizer import Evaluation, search_strength
from optimizer.strength import SWEEP

Metric = Callable[[int | None, float], float]


def falling(half_at: float) -> Metric:
    """From 1 towards 0, a half at `half_at`."""
    return lambda dims, strength: 1.0 / (1.0 + strength / half_at)


@pytest.mark.parametrize("half_at", [0.02, 0.5, 4.0, 60.0])
def test_a_crossing_is_bracketed_and_bisected(half_at: float) -> None:
    found = search_strength(falling(half_at), 0.5, refine_steps=6)
    assert found.metric == pytest.approx(0.5, abs=0.01)
    assert found.strength == pytest.approx(half_at, rel=0.05)
    assert "bisected" in found.reason
    assert found.target == 0.5
    assert len(found.evaluations) == len(SWEEP) + 6


def test_each_bisection_halves_the_bracket_on_a_log_scale() -> None:
    widths = []
    for steps in (0, 3, 6):
        refined = search_strength(falling(0.5), 0.5, refine_steps=steps).evaluations
        below = max(e.strength for e in refined if e.metric > 0.5)
        above = min(e.strength for e in refined if e.metric <= 0.5)
        widths.append(math.log(above / below))
    assert widths[0] == pytest.approx(math.log(1.0 / 0.3))
    assert widths[1] == pytest.approx(widths[0] / 8)
    assert widths[2] == pytest.approx(widths[0] / 64)


def test_a_metric_that_never_comes_down_gives_its_nearest_point_and_says_so() -> None:
    found = search_strength(lambda dims, strength: 0.9 - 0.001 * strength, 0.1)
    assert (found.strength, found.metric) == (100.0, pytest.approx(0.8))
    assert "never crosses" in found.reason
    assert len(found.evaluations) == len(SWEEP)


def test_a_metric_that_strength_does_not_move_gives_the_smallest_strength() -> None:
    found = search_strength(lambda dims, strength: 0.9, 0.1)
    assert found.strength == min(SWEEP)
    assert "never crosses" in found.reason


def test_already_forgotten_at_the_smallest_strength() -> None:
    found = search_strength(falling(0.001), 0.5)
    assert found.strength == min(SWEEP)
    assert found.metric < 0.5
    assert len(found.evaluations) == len(SWEEP)


def test_the_first_crossing_counts_where_the_metric_comes_back_up() -> None:
    """Far too much noise can make a model confident again; more corruption than is needed is never chosen."""

    def metric(dims: int | None, strength: float) -> float:
        return falling(0.5)(dims, strength) if strength < 5 else 0.8

    found = search_strength(metric, 0.5, refine_steps=6)
    assert found.strength == pytest.approx(0.5, rel=0.05)
    assert found.metric == pytest.approx(0.5, abs=0.02)


def test_a_dip_narrower_than_the_sweep_is_still_used_once_seen() -> None:
    found = search_strength(lambda dims, strength: 0.2 if strength == 3.0 else 0.9, 0.3, refine_steps=2)
    assert (found.strength, found.metric) == (3.0, 0.2)


def test_out_of_reach_the_smaller_strength_wins_within_one_percent_of_the_range() -> None:
    values = {0.1: 1.0, 1.0: 0.306, 10.0: 0.3}
    found = search_strength(lambda dims, strength: values[strength], 0.2, sweep=[10.0, 0.1, 1.0], refine_steps=0)
    assert found.strength == 1.0
    values[1.0] = 0.308
    found = search_strength(lambda dims, strength: values[strength], 0.2, sweep=[10.0, 0.1, 1.0], refine_steps=0)
    assert found.strength == 10.0


def test_what_reaches_the_target_beats_what_nearly_does() -> None:
    values = {0.1: 1.0, 1.0: 0.301, 10.0: 0.3}
    found = search_strength(lambda dims, strength: values[strength], 0.3, sweep=[10.0, 0.1, 1.0], refine_steps=0)
    assert found.strength == 10.0


def test_every_candidate_of_dims_is_tried_and_the_nearest_taken() -> None:
    def metric(dims: int | None, strength: float) -> float:
        return 1.0 if dims == 4 else falling(2.0)(dims, strength)

    found = search_strength(metric, 0.5, dims=(4, 8), refine_steps=5)
    assert found.dims == 8
    assert found.metric == pytest.approx(0.5, abs=0.02)
    assert {evaluation.dims for evaluation in found.evaluations} == {4, 8}


def test_every_evaluation_is_reported_and_kept_in_order() -> None:
    seen: list[Evaluation] = []
    found = search_strength(falling(0.5), 0.5, refine_steps=2, on_evaluation=seen.append)
    assert tuple(seen) == found.evaluations
    assert [evaluation.strength for evaluation in seen[: len(SWEEP)]] == sorted(SWEEP)
    assert Evaluation(found.dims, found.strength, found.metric) in seen
    as_json = json.loads(json.dumps(found.as_dict()))
    assert as_json["strength"] == found.strength
    assert len(as_json["evaluations"]) == len(seen)

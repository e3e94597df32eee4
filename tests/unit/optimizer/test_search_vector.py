"""One strength per dimension: random directions, and what common random numbers are worth."""

import math
import statistics

import numpy as np
import pytest
from analytic_objective import AnalyticObjective, bowl, falling

from corruption import CorruptionSpec
from optimizer.search.result import SearchResult
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace
from optimizer.search.steps import Bracket, halfway_to_neighbours, unit_directions

BOTTOM = (0.1, 3.0, 40.0, 0.7)
FOUR = SearchSpace(dims=(4,), hidden_size=16)


def search(objective: AnalyticObjective, space: SearchSpace = FOUR, **settings: object) -> SearchResult:
    return search_corruption(objective, space, SearchSettings.model_validate(settings), clock=lambda: 0.0)


def test_a_vector_reaches_what_no_single_strength_does() -> None:
    scalar = search(AnalyticObjective(bowl(BOTTOM), 0.0))
    assert not scalar.reached
    assert scalar.floor == pytest.approx(statistics.pvariance([math.log(s) for s in BOTTOM]), rel=0.02)
    found = search(AnalyticObjective(bowl(BOTTOM), 0.0), vector_steps=60)
    assert found.reached
    assert isinstance(found.spec.strength, tuple)
    assert found.spec.strength == pytest.approx(BOTTOM, rel=0.4)
    assert found.evaluations[: len(scalar.evaluations)] == scalar.evaluations


def test_all_dimensions_get_a_strength_each_within_the_bounds() -> None:
    space = SearchSpace(hidden_size=4)
    objective = AnalyticObjective(bowl((1e-3, 1.0, 1.0, 1e4)), 0.0)
    found = search(objective, space, vector_steps=40)
    assert found.spec.dims is None
    vectors = [spec.strength for spec in objective.measured if isinstance(spec.strength, tuple)]
    assert {len(strengths) for strengths in vectors} == {4}
    assert all(0.01 <= strength <= 100 for strengths in vectors for strength in strengths)
    assert min(found.spec.strength) == 0.01
    assert max(found.spec.strength) == 100


def test_many_dimensions_come_down_too() -> None:
    bottom = np.exp(np.random.default_rng(3).normal(size=64))
    found = search(AnalyticObjective(bowl(bottom), 0.0), SearchSpace(hidden_size=64), vector_steps=120)
    floor = min(e.value for e in found.evaluations if e.phase != "vector")
    assert found.best.phase == "vector"
    assert found.best.value < 0.15 * floor


def test_each_step_is_two_sides_of_the_best_so_far_in_one_call() -> None:
    objective = AnalyticObjective(bowl(BOTTOM), 0.0)
    found = search(objective, vector_steps=12, min_strength=1e-6, max_strength=1e6, sweep_points=13)
    vectors = [specs for specs, _ in objective.calls if isinstance(specs[0].strength, tuple)]
    assert {len(specs) for specs in vectors} == {2}
    values = {evaluation.spec: evaluation.value for evaluation in found.evaluations}
    scalars = [e for e in found.evaluations if e.phase != "vector"]
    least = min(e.value for e in scalars)
    best = min((e for e in scalars if e.value <= least + 0.001), key=lambda e: e.spec.strength).spec
    for plus, minus in vectors:
        centre = np.exp(np.log([plus.strength, minus.strength]).mean(axis=0))  # (4,)
        assert centre == pytest.approx(np.broadcast_to(best.strength, 4), rel=1e-3)
        best = min((best, plus, minus), key=values.__getitem__)


def test_steps_shrink_until_they_change_nothing() -> None:
    """At a bottom that the search starts from, every step fails."""
    found = search(AnalyticObjective(bowl((1.0,) * 4, depth=0.5), 0.0), vector_steps=1000, sweep_points=5)
    vectors = [e.spec.strength for e in found.evaluations if e.phase == "vector"]
    steps = [np.sqrt(np.mean(np.log(strengths) ** 2)) for strengths in vectors[::2]]
    assert steps[0] == pytest.approx(0.5, rel=1e-3)
    assert steps[5] == pytest.approx(0.5 * 0.8**5, rel=1e-2)
    assert len(steps) == pytest.approx(math.log(0.5 / 0.01) / -math.log(0.8), abs=1)
    assert found.best.spec.strength == 1.0
    assert f"and none of {len(vectors)} strength vectors brings the metric to" in found.reason


def test_no_step_where_one_strength_does_it_or_there_is_one_dimension() -> None:
    for dims in (1, 4):
        objective = AnalyticObjective(falling(2.0), 0.21)
        found = search(objective, SearchSpace(dims=(dims,), hidden_size=16), vector_steps=50)
        assert found.reached
        assert all(isinstance(spec.strength, float) for spec in objective.measured)


def test_the_seed_makes_the_directions() -> None:
    first, again, other = (search(AnalyticObjective(bowl(BOTTOM), 0.0), vector_steps=9, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.spec != other.spec


def test_the_noise_is_the_same_on_both_sides_and_that_is_needed() -> None:
    """Noise as large as what is to be gained. Common to both sides it cancels; drawn anew it decides the steps."""
    draws = np.random.default_rng(0)

    def noise(seed: int) -> float:
        return float(np.random.default_rng(seed).normal())

    def common(spec: CorruptionSpec, seed: int) -> float:
        return 10 + bowl(BOTTOM)(spec, 0) + noise(seed)

    def fresh(spec: CorruptionSpec, seed: int) -> float:
        return 10 + bowl(BOTTOM)(spec, 0) + float(draws.normal())

    left = {}
    for metric in (common, fresh):
        found = [search(AnalyticObjective(metric, 0.0), vector_steps=30, seed=seed) for seed in range(7)]
        left[metric] = statistics.median(bowl(BOTTOM)(result.spec, 0) for result in found)
    assert left[common] < 0.05 < 0.5 < left[fresh]


def test_a_difference_with_the_same_noise_on_both_sides_is_nearer_to_the_slope() -> None:
    """Noise on the log-strength, as a drawn embedding row has: it moves the whole curve, and its slope but little."""

    def shifted(spec: CorruptionSpec, seed: int) -> float:
        shift = float(np.random.default_rng(seed).normal(scale=0.2))
        return falling(2.0 * math.exp(shift))(spec, seed)

    objective = AnalyticObjective(shifted, 0.0)
    low, high = (CorruptionSpec(method="rand_noise_first_n", dims=1, strength=s) for s in (1.9, 2.1))
    slope = falling(2.0)(high, 0) - falling(2.0)(low, 0)
    same, different = [], []
    for seed in range(0, 200, 2):
        minus, plus = objective.measure([low, high], [seed])
        (other,) = objective.measure([high], [seed + 1])
        same.append((plus.value - minus.value - slope) ** 2)
        different.append((other.value - minus.value - slope) ** 2)
    assert statistics.fmean(same) < 0.01 * statistics.fmean(different)


@pytest.mark.parametrize(("dims", "count"), [(1, 3), (3, 3), (4, 10), (64, 5)])
def test_directions_are_of_length_one_and_orthogonal_in_blocks(dims: int, count: int) -> None:
    directions = unit_directions(dims, count, seed=5)
    assert directions.shape == (count, dims)
    for start in range(0, count, dims):
        block = directions[start : start + dims]
        assert block @ block.T == pytest.approx(np.eye(len(block)), abs=1e-12)
    assert (directions == unit_directions(dims, count, seed=5)).all()
    assert unit_directions(dims, 0, seed=5).shape == (0, dims)


def test_directions_favour_no_side() -> None:
    first = np.array([unit_directions(3, 1, seed)[0] for seed in range(600)])  # (600, 3)
    assert first.mean(axis=0) == pytest.approx(np.zeros(3), abs=0.08)
    assert (first**2).mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_a_bracket_interpolates_on_the_log_scale() -> None:
    assert Bracket(1.0, 100.0, 1.0, -1.0).next_strength() == pytest.approx(10.0)
    assert Bracket(1.0, 16.0, 3.0, -1.0).next_strength() == pytest.approx(8.0)
    assert Bracket(1.0, 10.0, 1e9, -1.0).next_strength() == pytest.approx(10**0.95)


@pytest.mark.parametrize("low_stays", [True, False])
def test_a_bracket_halves_the_residual_of_an_end_that_stays_and_then_bisects(low_stays: bool) -> None:
    bracket = Bracket(1.0, 100.0, 3.0, -1.0) if low_stays else Bracket(1.0, 100.0, 1.0, -3.0)
    shares = []
    for _ in range(4):
        strength = bracket.next_strength()
        share = math.log(strength / bracket.low) / math.log(bracket.ratio)
        shares.append(share if low_stays else 1 - share)
        bracket = bracket.narrowed(strength, -1.0 if low_stays else 1.0)
    assert shares == pytest.approx([3 / 4, 3 / 4, 1.5 / 2.5, 1 / 2])


def test_both_sides_lie_halfway_to_the_neighbours() -> None:
    assert halfway_to_neighbours([1.0, 4.0, 64.0], 4.0) == pytest.approx([2.0, 16.0])
    assert halfway_to_neighbours([1.0, 4.0, 64.0], 1.0) == pytest.approx([2.0])
    assert halfway_to_neighbours([1.0, 4.0, 64.0], 64.0) == pytest.approx([16.0])

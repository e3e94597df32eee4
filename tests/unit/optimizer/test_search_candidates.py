"""The search over methods and numbers of dimensions."""

import pytest
from analytic_objective import AnalyticObjective, falling
from pydantic import ValidationError

from corruption import CorruptionSpec
from optimizer.errors import SearchError
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace, label_of

WIDTH = 16


def by_dims(spec: CorruptionSpec, seed: int) -> float:
    """The fewer dimensions, the more strength they need; one alone never gets below 0.4."""
    touched = spec.dims or WIDTH
    return falling(8.0 / touched, floor=0.4 if touched == 1 else 0.0)(spec, seed)


def test_every_pair_is_swept_and_the_promising_are_refined() -> None:
    objective = AnalyticObjective(by_dims, 0.21)
    space = SearchSpace(dims=(1, 4, None), hidden_size=WIDTH)
    found = search_corruption(objective, space, SearchSettings(refined_candidates=2))
    swept = [e.spec.dims for e in found.evaluations if e.phase == "sweep"]
    assert swept == [1] * 6 + [4] * 6 + [None] * 6
    assert {e.spec.dims for e in found.evaluations if e.phase == "refine"} == {4, None}
    assert found.reached
    assert found.spec.dims in {4, None}


def test_only_so_many_are_refined() -> None:
    space = SearchSpace(dims=(2, 4, None), hidden_size=WIDTH)
    found = search_corruption(AnalyticObjective(by_dims, 0.21), space, SearchSettings(refined_candidates=1))
    assert len({e.spec.dims for e in found.evaluations if e.phase == "refine"}) == 1


def test_what_crosses_the_retained_value_is_refined_before_what_only_comes_near() -> None:
    def metric(spec: CorruptionSpec, seed: int) -> float:
        return falling(2.0, steepness=30)(spec, seed) if spec.dims == 4 else falling(2.0, floor=0.24)(spec, seed)

    space = SearchSpace(dims=(None, 4), hidden_size=WIDTH)
    found = search_corruption(AnalyticObjective(metric, 0.21), space, SearchSettings(refined_candidates=1))
    assert min(e.distance for e in found.evaluations[:6]) < min(e.distance for e in found.evaluations[6:12])
    assert found.reached
    assert found.spec.dims == 4


@pytest.mark.parametrize("worse", [4, None])
def test_of_two_that_cross_it_the_one_with_less_gibberish_is_refined_first(worse: int | None) -> None:
    space = SearchSpace(dims=(4, None), hidden_size=WIDTH)
    objective = AnalyticObjective(by_dims, 0.21, gibberish=lambda spec: 1.0 if spec.dims == worse else 0.2)
    found = search_corruption(objective, space, SearchSettings(refined_candidates=1))
    assert worse not in {e.spec.dims for e in found.evaluations if e.phase == "refine"}


def test_of_two_that_reach_it_the_one_with_less_gibberish_is_taken() -> None:
    space = SearchSpace(dims=(4, None), hidden_size=WIDTH)
    for worse in (4, None):
        objective = AnalyticObjective(by_dims, 0.21, gibberish=lambda spec, w=worse: 1.0 if spec.dims == w else 0.2)
        found = search_corruption(objective, space)
        assert found.reached
        assert found.spec.dims != worse


def test_without_gibberish_the_smaller_corruption_is_taken() -> None:
    """The same metric at the same strength: four dimensions are touched less than sixteen."""
    found = search_corruption(AnalyticObjective(falling(2.0), 0.21), SearchSpace(dims=(None, 4), hidden_size=WIDTH))
    assert found.spec.dims == 4


def test_methods_without_strength_are_single_points_and_permuting_ones_have_no_dims() -> None:
    space = SearchSpace(methods=("zero_out_top_k", "shuffle", "reverse_order"), dims=(2, None), hidden_size=WIDTH)
    objective = AnalyticObjective(lambda spec, seed: 0.3 if spec.method == "shuffle" else 0.9, 0.31)
    found = search_corruption(objective, space, SearchSettings(vector_steps=5))
    assert [(e.spec.method, e.spec.dims, e.spec.strength) for e in found.evaluations] == [
        ("zero_out_top_k", 2, None),
        ("zero_out_top_k", None, None),
        ("shuffle", None, None),
        ("reverse_order", None, None),
    ]
    assert found.reached
    assert found.spec.method == "shuffle"
    missed = search_corruption(AnalyticObjective(lambda spec, seed: 0.9, 0.31), space)
    assert not missed.reached
    assert missed.reason.startswith("none of the methods brings the metric to 0.3100 ± 0.02; the floor found is 0.9000")


def test_a_point_without_strength_does_not_win_over_an_equal_one_with() -> None:
    space = SearchSpace(methods=("zero_out_first_n", "rand_noise_first_n"), dims=(2,), hidden_size=WIDTH)
    objective = AnalyticObjective(lambda spec, seed: 0.21 if spec.strength is None else falling(2.0)(spec, seed), 0.21)
    found = search_corruption(objective, space)
    assert found.spec.method == "rand_noise_first_n"
    assert found.reached


def test_what_reaches_the_target_is_taken_over_what_nearly_does() -> None:
    space = SearchSpace(methods=("rand_noise_first_n", "sub_value_first_n"), dims=(1,), hidden_size=WIDTH)

    def metric(spec: CorruptionSpec, seed: int) -> float:
        return falling(2.0, floor=0.24 if spec.method == "rand_noise_first_n" else 0.0)(spec, seed)

    found = search_corruption(AnalyticObjective(metric, 0.21), space)
    assert found.spec.method == "sub_value_first_n"


def test_the_scope_reaches_the_spec() -> None:
    space = SearchSpace(dims=(1,), hidden_size=WIDTH, scope="entities")
    assert search_corruption(AnalyticObjective(falling(2.0), 0.21), space).spec.scope == "entities"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ()}, "methods"),
        ({"methods": ("gaussian",)}, "methods"),
        ({"methods": ("shuffle", "shuffle")}, "methods: one is named twice"),
        ({"dims": ()}, "dims"),
        ({"dims": (0,)}, "dims"),
        ({"dims": (17,)}, "dims: 17 is more than the model's hidden size 16"),
        ({"dims": (16, None)}, "dims: a number comes twice"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"layers": 2}, "layers"),
    ],
)
def test_a_space_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSpace.model_validate({"hidden_size": 16} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"min_strength": 0}, "min_strength"),
        ({"min_strength": 5, "max_strength": 5}, "max_strength: 5 is not above min_strength 5"),
        ({"sweep_points": 1}, "sweep_points"),
        ({"noise_seeds": ()}, "noise_seeds"),
        ({"noise_seeds": (1, 1)}, "noise_seeds: a seed comes twice"),
        ({"budget_s": 0}, "budget_s"),
        ({"budget_evaluations": 0}, "budget_evaluations"),
        ({"vector_steps": -1}, "vector_steps"),
        ({"budget_seconds": 3}, "budget_seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSettings.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"method": "shuffle"}, "shuffle"),
        ({"method": "zero_out_top_k", "dims": 1}, "zero_out_top_k on 1 dimension"),
        ({"method": "rand_noise_first_n", "strength": 2.0}, "rand_noise_first_n on all dimensions at strength 2"),
        (
            {"method": "rand_noise_first_n", "dims": 2, "strength": [0.5, 31.62]},
            "rand_noise_first_n on 2 dimensions at 2 strengths from 0.5 to 31.62",
        ),
    ],
)
def test_labels(fields: dict[str, object], label: str) -> None:
    assert label_of(CorruptionSpec.model_validate(fields)) == label


@pytest.mark.parametrize("number", ["value", "distance", "gap", "standard_error", "gibberish"])
def test_a_measurement_that_is_no_number_ends_the_search(number: str) -> None:
    import dataclasses

    class Broken(AnalyticObjective):
        def measure(self, specs, noise_seeds):  # type: ignore[no-untyped-def]
            return [dataclasses.replace(m, **{number: float("nan")}) for m in super().measure(specs, noise_seeds)]

    with pytest.raises(SearchError, match=f"objective: {number} is nan for rand_noise_first_n on 1 dimension at stren"):
        search_corruption(Broken(falling(2.0), 0.2), SearchSpace(dims=(1,), hidden_size=WIDTH))


def test_a_distance_below_zero_ends_the_search() -> None:
    objective = AnalyticObjective(falling(2.0), 0.2, distance=lambda spec: -0.1)
    with pytest.raises(SearchError, match=r"objective: distance is -0.1 for"):
        search_corruption(objective, SearchSpace(dims=(1,), hidden_size=WIDTH))


def test_a_measurement_too_few_ends_the_search() -> None:
    class Broken(AnalyticObjective):
        def measure(self, specs, noise_seeds):  # type: ignore[no-untyped-def]
            return super().measure(specs, noise_seeds)[1:]

    with pytest.raises(SearchError, match=r"measure\(\) gave 5 measurements for 6 corruptions"):
        search_corruption(Broken(falling(2.0), 0.2), SearchSpace(dims=(1,), hidden_size=WIDTH))

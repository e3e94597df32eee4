"""Budgets: what is spent, and what the search says when it is."""

import itertools

import pytest
from analytic_objective import AnalyticObjective, bowl, falling

from optimizer.errors import SearchError
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace

SPACE = SearchSpace(dims=(2, 4), hidden_size=16)


@pytest.mark.parametrize("budget", [6, 7, 11, 17, 18, 49])
def test_no_more_is_measured_than_the_budget_allows(budget: int) -> None:
    objective = AnalyticObjective(bowl((0.1, 3.0)), 0.0)
    space = SearchSpace(dims=(2,), hidden_size=16)
    settings = SearchSettings(budget_evaluations=budget, vector_steps=100)
    totals = set()
    found = search_corruption(objective, space, settings, on_evaluation=lambda e, done, total: totals.add(total))
    assert len(objective.measured) == len(found.evaluations) <= budget
    assert max(totals) <= budget
    assert f"the budget of {budget} evaluations is spent before anything brought the metric to 0.0000 ± 0.02" in (
        found.reason
    )
    assert found.best.distance == pytest.approx(min(e.distance for e in found.evaluations), abs=0.001)


def test_a_larger_budget_never_ends_farther_away() -> None:
    left = []
    for budget in range(8, 60, 8):
        settings = SearchSettings(budget_evaluations=budget, vector_steps=100)
        objective = AnalyticObjective(bowl((0.1, 3.0)), 0.0)
        left.append(search_corruption(objective, SearchSpace(dims=(2,), hidden_size=2), settings).best.distance)
    assert all(later <= earlier for earlier, later in itertools.pairwise(left))


def test_a_budget_too_small_for_the_sweep_is_refused_before_anything_is_measured() -> None:
    objective = AnalyticObjective(falling(2.0), 0.21)
    with pytest.raises(SearchError, match=r"budget_evaluations: 11 is too few for the sweep, which takes 12 over 2"):
        search_corruption(objective, SPACE, SearchSettings(budget_evaluations=11))
    assert objective.calls == []


class Watch:
    """A clock that the objective moves: `seconds` for each corruption it measures."""

    def __init__(self, objective: AnalyticObjective, seconds: float) -> None:
        self._objective = objective
        self._seconds = seconds

    def __call__(self) -> float:
        return 1000 + self._seconds * len(self._objective.measured)


def test_no_measurement_is_started_after_the_seconds_are_spent() -> None:
    objective = AnalyticObjective(bowl((0.1, 3.0)), 0.0)
    settings = SearchSettings(budget_s=95, vector_steps=100)
    space = SearchSpace(dims=(2,), hidden_size=16)
    found = search_corruption(objective, space, settings, clock=Watch(objective, 10.0))
    assert not found.reached
    assert found.reason.startswith("the budget of 95 s is spent before anything brought the metric to 0.0000 ± 0.02")
    assert found.evaluations[-1].elapsed_s in {100.0, 110.0}
    assert [call for call in objective.calls if len(call[0]) > 2] == objective.calls[:1]


def test_seconds_spent_in_the_sweep_leave_the_best_of_it() -> None:
    objective = AnalyticObjective(falling(2.0), 0.21)
    found = search_corruption(objective, SPACE, SearchSettings(budget_s=1), clock=Watch(objective, 10.0))
    assert {e.spec.dims for e in found.evaluations} == {2}
    assert found.best.distance == min(e.distance for e in found.evaluations)
    assert "the budget of 1 s is spent" in found.reason


def test_a_budget_spent_after_the_target_was_reached_is_told_too() -> None:
    def metric(spec, seed):  # type: ignore[no-untyped-def]
        return 0.21 if spec.dims == 2 and spec.strength > 2 else falling(9.0)(spec, seed)

    found = search_corruption(AnalyticObjective(metric, 0.21), SPACE, SearchSettings(budget_evaluations=13))
    assert found.reached
    assert found.reason.endswith("; the budget of 13 evaluations is spent")

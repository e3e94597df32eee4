"""The figures of requests in turn, against those that DRAGON prints, and on cases that can be counted by hand."""

import math

import pytest

from evaluation.successive.figures import (
    after,
    deviation_score,
    dynamic_deviation_score,
    dynamic_utility_score,
    sequence_figures,
)
from evaluation.suite import Figure, Score

#: Deviation score and model utility for forget01, forget05 and forget10 (table 2), then DDS and DUS (table 3), of
#: Llama2-7B-Chat, arXiv 2511.05784.
PRINTED = {
    "GA": ([48.8, 95.6, 98.7], [0.6327, 0.0, 0.0], 0.9351, 0.6836),
    "KL": ([55.5, 100.0, 100.0], [0.6290, 0.0, 0.0], 0.9629, 0.6855),
    "GD": ([48.4, 92.7, 88.7], [0.6321, 0.0942, 0.0491], 0.8768, 0.7085),
    "PO": ([37.9, 33.0, 23.7], [0.6312, 0.5187, 0.5380], 0.3153, 0.9341),
    "DPO": ([59.3, 99.0, 99.0], [0.6361, 0.0286, 0.0], 0.9569, 0.6820),
    "NPO-RT": ([46.4, 69.9, 64.7], [0.6329, 0.4732, 0.4619], 0.6621, 0.9145),
    "ICUL+": ([58.1, 49.9, 49.9], [0.6337, 0.6337, 0.6337], 0.5263, 1.0),
    "Filter-Prompting": ([43.5, 40.0, 38.7], [0.6337, 0.6337, 0.6326], 0.4073, 0.9994),
    "DRAGON": ([21.4, 23.1, 26.5], [0.6337, 0.6337, 0.6337], 0.2494, 1.0),
}


@pytest.mark.parametrize("method", PRINTED)
def test_the_scores_that_dragon_prints_follow_from_those_of_its_steps(method: str) -> None:
    deviations, utilities, dds, dus = PRINTED[method]
    assert dynamic_deviation_score([one / 100 for one in deviations]) == pytest.approx(dds, abs=1.1e-4)
    assert dynamic_utility_score(utilities) == pytest.approx(dus, abs=1.1e-4)


def test_the_deviation_is_the_distance_from_all_forgotten_and_all_known() -> None:
    assert deviation_score(0.0, 1.0) == 0.0
    assert deviation_score(0.0, 0.0) == 1.0
    assert deviation_score(0.3, 0.6) == pytest.approx(0.5)


@pytest.mark.parametrize("score", [dynamic_deviation_score, dynamic_utility_score])
def test_one_step_has_no_changes(score: object) -> None:
    with pytest.raises(ValueError, match="give two or more"):
        score([0.5])  # type: ignore[operator]


def scores_of_three(forget: dict[tuple[int, int], float], retain: list[float]) -> list[Score]:
    """Requests 1 to 3, of one, one and two examples, with a ROUGE-L for each (request, step), and the retain set's."""
    found = []
    for step, kept in enumerate(retain):
        rows = [("retain", "0/a", kept)]
        for request, example in ((1, "1/a"), (2, "2/a"), (3, "3/a"), (3, "3/b")):
            rows.append(("forget" if request <= step else "waiting", example, forget.get((request, step), 1.0)))
        found += [Score(of, "rouge_l", f"{one}/{after(step)}", value, after(step)) for of, one, value in rows]
    return found


def named(scores: list[Score]) -> dict[str, Figure]:
    return {figure.name: figure for figure in sequence_figures(scores, 3, ("rouge_l",))}


def test_each_request_is_measured_from_its_own_step_on() -> None:
    forget = {(1, 1): 0.2, (1, 2): 0.4, (1, 3): 0.1, (2, 2): 0.0, (2, 3): 0.3, (3, 3): 0.6, (2, 1): 0.8}
    found = named(scores_of_three(forget, [0.9, 0.9, 0.7, 0.8]))
    assert found["request_1/rouge_l/after_2"].value == pytest.approx(0.4)
    assert "request_2/rouge_l/after_1" not in found
    assert found["forget/rouge_l/after_2"].value == pytest.approx(0.2)
    assert found["forget/rouge_l/after_3"].value == pytest.approx((0.1 + 0.3 + 0.6 + 0.6) / 4)  # by example
    assert found["forget/rouge_l/after_3"].n == 4
    assert found["waiting/rouge_l/after_1"].value == pytest.approx((0.8 + 1 + 1) / 3)
    assert {"forget/rouge_l/after_0", "waiting/rouge_l/after_3"}.isdisjoint(found)
    assert found["came_back/worst"].value == pytest.approx(0.3)  # of the second request, from 0 to 0.3
    assert found["came_back/mean"].value == pytest.approx((0.2 - 0.1 + 0.3) / 3)
    assert found["utility_lost/worst"].value == pytest.approx(0.2)
    assert found["utility_lost/mean"].value == pytest.approx(0.1)
    assert found["dus"].value == pytest.approx(1 - (0.2 + 0.1) / 2)  # what was before the first request is no step
    deviations = [math.hypot(0.2, 0.1), math.hypot(0.2, 0.3), math.hypot(0.4, 0.2)]
    rises = (deviations[1] - deviations[0] + deviations[2] - deviations[1]) / 2
    assert found["dds"].value == pytest.approx(sum(deviations) / 3 + 0.5 * rises)


def test_the_mean_over_the_steps_stands_on_questions() -> None:
    found = named(scores_of_three({(1, 1): 0.3}, [1.0, 1.0, 1.0, 1.0]))
    assert (found["forget/rouge_l"].n, found["retain/rouge_l"].n) == (4, 1)
    assert found["forget/rouge_l"].value == pytest.approx(((0.3 + 1 + 1) / 3 + 3) / 4)

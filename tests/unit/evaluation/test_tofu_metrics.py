"""TOFU's definitions against scipy, against an independent computation, and at their edges."""

import math

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from evaluation.errors import DataError
from evaluation.suite import Score
from evaluation.tofu.metrics import (
    UTILITY_COMPONENTS,
    example_metrics,
    forget_quality_figures,
    harmonic_mean,
    indifference,
    model_utility_figure,
    normalised_probability,
    tofu_figures,
    truth_ratio,
)
from scoring.forget_quality import forget_quality

RANDOM = np.random.default_rng(3)


def test_the_truth_ratio_takes_the_geometric_mean_by_default_and_the_papers_arithmetic_one_on_request() -> None:
    paraphrased, perturbed = math.log(0.5), [math.log(0.1), math.log(0.4)]

    assert truth_ratio(paraphrased, perturbed) == pytest.approx(math.sqrt(0.1 * 0.4) / 0.5)
    assert truth_ratio(paraphrased, perturbed, "arithmetic") == pytest.approx(0.25 / 0.5)


def test_a_probability_is_normalised_over_the_right_and_the_wrong_answers() -> None:
    assert normalised_probability(math.log(0.5), [math.log(0.25), math.log(0.25)]) == pytest.approx(0.5)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_probabilities_too_small_for_floats_still_give_finite_metrics(mean: str) -> None:
    for answer, wrong in ((-5000.0, -1.0), (-1.0, -5000.0)):
        found = example_metrics("real_authors", answer, answer, [wrong], mean)  # type: ignore[arg-type]

        assert all(math.isfinite(value) for value in found.values())
        assert indifference(found["truth_ratio"]) < 1e-100


def test_each_subset_has_its_own_probability_and_truth_score() -> None:
    numbers = (math.log(0.6), math.log(0.3), [math.log(0.6)])  # R = 2

    assert example_metrics("forget", *numbers) == pytest.approx(
        {"probability": 0.6, "truth_ratio": 2.0, "truth_score": 0.5}
    )
    assert example_metrics("retain", *numbers) == pytest.approx(
        {"probability": 0.6, "truth_ratio": 2.0, "truth_score": 0.0}
    )
    assert example_metrics("world_facts", *numbers)["probability"] == pytest.approx(0.5)


def test_the_harmonic_mean_is_scipys_and_zero_where_a_component_is() -> None:
    components = RANDOM.uniform(0.01, 1, size=(5, 9))

    np.testing.assert_allclose(harmonic_mean(components), hmean(components, axis=-1), rtol=1e-12)
    assert harmonic_mean(np.array([0.5, 0.0, 1.0])) == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        harmonic_mean(np.array([0.5, -0.1]))


def test_two_models_that_err_in_opposite_directions_differ_though_their_folded_ratios_are_alike() -> None:
    """What ECO's test on min(R, 1/R) cannot see."""
    mine = RANDOM.lognormal(1.5, 0.3, 100)
    other = 1 / mine

    assert forget_quality(list(mine), list(other)).p_value < 1e-20
    folded = [[indifference(ratio) for ratio in ratios] for ratios in (mine, other)]
    assert forget_quality(*folded).p_value == pytest.approx(1)


def utility_scores(values: dict[tuple[str, str], np.ndarray]) -> list[Score]:
    """Scores of (D, N) values."""
    return [
        Score(subset, metric, str(example), float(value), draw=draw)
        for (subset, metric), table in values.items()
        for draw, row in enumerate(table)
        for example, value in enumerate(row)
    ]


def test_model_utility_has_an_interval_around_it_that_narrows_with_more_examples() -> None:
    def widths(count: int) -> float:
        generator = np.random.default_rng(5)
        values = {component: generator.uniform(0.2, 0.9, (1, count)) for component in UTILITY_COMPONENTS}
        figure = model_utility_figure(utility_scores(values))
        assert figure.value == pytest.approx(hmean([table.mean() for table in values.values()]))
        assert figure.n == 3 * count
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
        return figure.high - figure.low

    assert widths(400) < 0.5 * widths(40)


def test_model_utilitys_interval_matches_a_bootstrap_in_a_plain_loop() -> None:
    generator = np.random.default_rng(6)
    values = {component: generator.uniform(0.1, 0.9, (2, 30)) for component in UTILITY_COMPONENTS}
    figure = model_utility_figure(utility_scores(values))

    found = []
    for _ in range(2000):
        draws = generator.integers(2, size=2)
        picked = {subset: generator.integers(30, size=30) for subset in ("retain", "real_authors", "world_facts")}
        found.append(hmean([table[draws][:, picked[subset]].mean() for (subset, _), table in values.items()]))

    assert [figure.low, figure.high] == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.006)


def test_a_component_that_was_not_measured_leaves_model_utility_open_and_is_named() -> None:
    values = {c: np.full((1, 4), 0.5) for c in UTILITY_COMPONENTS if c != ("world_facts", "truth_score")}

    figure = model_utility_figure(utility_scores(values))

    assert math.isnan(figure.value)
    assert figure.note == "not measured: world_facts/truth_score"


def test_a_component_of_zero_makes_model_utility_zero_and_is_named() -> None:
    values = {c: np.full((1, 4), 0.0 if c == ("retain", "rouge_l") else 0.5) for c in UTILITY_COMPONENTS}

    figure = model_utility_figure(utility_scores(values))

    assert figure.value == 0.0
    assert figure.note == "harmonic mean of nine; 0 because of retain/rouge_l"


def ratio_scores(*draws: np.ndarray, prefix: str = "") -> list[Score]:
    return (
        utility_scores({("forget", "truth_ratio"): np.array(draws)})
        if not prefix
        else [Score("forget", "truth_ratio", f"{prefix}{n}", float(v)) for n, v in enumerate(draws[0])]
    )


def test_forget_quality_of_several_draws_is_the_median_of_one_test_for_each() -> None:
    draws = [RANDOM.lognormal(shift, 1, 50) for shift in (0.0, 0.3, 0.9)]
    reference = RANDOM.lognormal(0, 1, 50)
    expected = sorted(ks_2samp(draw, reference).pvalue for draw in draws)

    p, log10_p, statistic = forget_quality_figures(ratio_scores(*draws), ratio_scores(reference))

    assert p.value == pytest.approx(expected[1])
    assert log10_p.value == pytest.approx(math.log10(expected[1]))
    assert 0 < statistic.value < 1
    assert p.n == 50
    assert "median of 3 noise draws" in p.note


def test_forget_quality_says_what_it_lacks() -> None:
    mine = ratio_scores(RANDOM.lognormal(0, 1, 10))

    for scores, reference, missing in (
        (mine, None, "needs the scores of a retain model"),
        (mine, [], "retain model's truth ratios were not measured"),
        ([], mine, "forget set's truth ratios were not measured"),
    ):
        figures = forget_quality_figures(scores, reference)
        assert len(figures) == 3
        assert all(math.isnan(figure.value) and missing in figure.note for figure in figures)


def test_a_reference_of_other_questions_is_refused() -> None:
    ratios = RANDOM.lognormal(0, 1, 10)

    with pytest.raises(DataError, match=r"other forget questions.*\(20 are in one"):
        tofu_figures(ratio_scores(ratios), ratio_scores(ratios, prefix="x"))

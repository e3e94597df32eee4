"""Forget quality against scipy, and the distance a search goes by against sums over all pairs."""

import math

import numpy as np
import pytest
from scipy.stats import cramervonmises_2samp, ks_2samp

from scoring.forget_quality import compare_samples, forget_quality, log_truth_ratio

RANDOM = np.random.default_rng(4)


def test_forget_quality_is_scipys_test_and_the_same_for_inverted_ratios_and_their_logarithms() -> None:
    mine, other = RANDOM.lognormal(0, 1, 60), RANDOM.lognormal(0.4, 1, 60)
    expected = ks_2samp(mine, other)

    found = forget_quality(list(mine), list(other))

    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.log10_p == pytest.approx(math.log10(expected.pvalue))
    assert forget_quality(1 / mine, 1 / other).p_value == pytest.approx(found.p_value, abs=1e-12)
    assert forget_quality(np.log(mine), np.log(other)) == found


def test_a_p_value_too_small_for_a_float_has_a_finite_logarithm() -> None:
    found = forget_quality([0.1] * 3000, [9.0] * 3000)

    assert found.p_value == 0.0
    assert -330 < found.log10_p < -300


def test_the_truth_ratio_is_of_the_wrong_answers_geometric_mean() -> None:
    ratio = log_truth_ratio(math.log(0.5), [math.log(0.1), math.log(0.4)])
    assert math.exp(ratio) == pytest.approx(math.sqrt(0.1 * 0.4) / 0.5)


def test_below_is_the_share_of_pairs_and_the_distance_is_cramers_and_von_mises() -> None:
    one, other = RANDOM.normal(0, 1, 7), RANDOM.normal(0.5, 2, 9)
    found = compare_samples(one, other)

    assert found.below == pytest.approx(np.mean(one[:, np.newaxis] < other))
    # What scipy tests grows with the sample sizes: T = NM / (N + M)² times the sum over all points.
    points = np.concatenate([one, other])
    gaps = [np.mean(one <= point) - np.mean(other <= point) for point in points]
    assert cramervonmises_2samp(one, other).statistic == pytest.approx(7 * 9 / 16**2 * np.sum(np.square(gaps)))
    # Here a point is half below itself, which moves each gap by half a step at most.
    assert found.distance == pytest.approx(np.sqrt(np.mean(np.square(gaps))), abs=0.5 / 7)


def test_samples_apart_alike_and_tied() -> None:
    apart = compare_samples([1.0, 2.0], [3.0, 4.0])
    assert apart.below == 1.0
    assert apart.distance == pytest.approx(math.sqrt((2 * 0.25**2 + 2 * 0.75**2) / 4))
    assert compare_samples([3.0, 1.0], [1.0, 3.0]) == (0.5, 0.0)
    assert compare_samples([1.0], [1.0, 2.0]).below == 0.75


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_shift_distance_and_statistic_never_change_places(spread: float) -> None:
    for shift in (-1.0, 0.0, 0.2):
        one, other = RANDOM.normal(shift, spread, 50), RANDOM.normal(0, 1, 40)
        found = compare_samples(one, other)
        assert abs(found.below - 0.5) <= found.distance <= forget_quality(one, other).statistic


def test_what_is_spread_otherwise_is_far_though_it_lies_alike() -> None:
    narrow, wide = np.linspace(-1, 1, 100), np.linspace(-3, 3, 100)
    found = compare_samples(narrow, wide)
    assert found.below == pytest.approx(0.5, abs=0.01)
    assert found.distance > 0.15

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from classifiers.calibration.assessment import assess
from classifiers.calibration.threshold import CalibrationError, clopper_pearson

FOUR = ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])  # the example that textbooks and scikit-learn's manual use


def tied_scores() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    return np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 1), 0, 1), labels


def test_curves_of_a_known_example() -> None:
    found = assess(*FOUR, 0.35)
    assert found.roc.auc == 0.75
    assert found.roc.false_positive_rate == (0, 0, 0.5, 0.5, 1)
    assert found.roc.recall == (0, 0.5, 0.5, 1, 1)
    assert found.roc.thresholds[1:] == (0.8, 0.4, 0.35, 0.1)
    assert found.roc.thresholds[0] > 0.8
    assert found.precision_recall.average_precision == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert found.precision_recall.recall == (0.5, 1)
    assert found.precision_recall.precision == pytest.approx((1, 2 / 3))
    assert found.precision_recall.thresholds == (0.8, 0.35)


def test_area_is_the_chance_that_a_text_to_forget_scores_higher() -> None:
    scores, labels = tied_scores()
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    wins = [1.0 if own > other else 0.5 if own == other else 0.0 for own, other in pairs]
    roc = assess(scores, labels, 0.5).roc
    assert roc.auc == pytest.approx(np.mean(wins), abs=1e-12)
    trapezoids = np.trapezoid(roc.recall, roc.false_positive_rate)
    assert roc.auc == pytest.approx(trapezoids, abs=1e-12)  # the points left out lie on straight lines


def test_every_point_is_what_its_threshold_gives() -> None:
    scores, labels = tied_scores()
    found = assess(scores, labels, 0.5)
    for false_positives, recall, threshold in zip(
        found.roc.false_positive_rate, found.roc.recall, found.roc.thresholds, strict=True
    ):
        flagged = scores >= threshold
        assert (flagged[labels == 1].mean(), flagged[labels == 0].mean()) == pytest.approx((recall, false_positives))
    curve = found.precision_recall
    previous, area = 0.0, 0.0
    for recall, precision, threshold in zip(curve.recall, curve.precision, curve.thresholds, strict=True):
        flagged = scores >= threshold
        assert (flagged[labels == 1].mean(), labels[flagged].mean()) == pytest.approx((recall, precision))
        previous, area = recall, area + (recall - previous) * precision
    assert previous == 1
    assert area == pytest.approx(curve.average_precision)


def test_curves_at_the_extremes() -> None:
    apart = assess([0.1, 0.2, 0.3, 0.7, 0.8], [0, 0, 0, 1, 1], 0.5)
    assert apart.roc.false_positive_rate == (0, 0, 1)  # straight runs keep their ends only
    assert (apart.roc.auc, apart.precision_recall.average_precision) == (1, 1)
    same = assess([0.5] * 10, [0] * 8 + [1] * 2, 0.5)
    assert (same.roc.auc, same.precision_recall.average_precision) == (0.5, 0.2)
    assert (same.roc.false_positive_rate, same.roc.recall) == ((0, 1), (0, 1))
    reversed_ = assess([0.9, 0.1], [0, 1], 0.5)
    assert (reversed_.roc.auc, reversed_.precision_recall.average_precision) == (0, 0.5)


def test_histograms_count_every_text_once() -> None:
    histogram = assess([0.0, 0.05, 0.1, 0.999, 1.0, 1.0], [0, 1, 0, 0, 1, 1], 0.5, histogram_bins=10).histogram
    assert histogram.edges == pytest.approx(np.arange(11) / 10)
    assert histogram.positives == (1, 0, 0, 0, 0, 0, 0, 0, 0, 2)
    assert histogram.negatives == (1, 1, 0, 0, 0, 0, 0, 0, 0, 1)


def test_reliability_compares_scores_with_shares() -> None:
    scores = [0.05, 0.15, 0.15, 0.2, 0.95, 1.0, 0.9, 0.9]
    reliability = assess(scores, [0, 0, 1, 0, 1, 1, 1, 0], 0.5, reliability_bins=5).reliability
    assert [(row.low, row.high, row.count) for row in reliability.bins] == [
        (0, 0.2, 3),
        (0.2, 0.4, 1),
        (0.8, 1, 4),
    ]
    assert [row.mean_score for row in reliability.bins] == pytest.approx([0.35 / 3, 0.2, 0.9375])
    assert [row.observed for row in reliability.bins] == pytest.approx([1 / 3, 0, 0.75])
    expected = (3 * (1 / 3 - 0.35 / 3) + 0.2 + 4 * 0.1875) / 8
    assert reliability.expected_calibration_error == pytest.approx(expected)


def test_scores_that_are_probabilities_have_a_small_calibration_error() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(20_000)
    labels = (rng.random(20_000) < scores).astype(int)
    assert assess(scores, labels, 0.5).reliability.expected_calibration_error < 0.015
    assert assess(scores**2, labels, 0.5).reliability.expected_calibration_error > 0.1


def test_rates_are_given_by_group_with_intervals() -> None:
    scores = [0.9, 0.5, 0.2, 0.6, 0.1, 0.3, 0.7]
    labels = [1, 1, 1, 0, 0, 0, 0]
    groups = ["plain", "plain", "attack", "plain", "neighbour", "neighbour", "plain"]
    found = assess(scores, labels, 0.5, groups)
    assert found.rates.recall is not None
    assert (found.rates.recall.count, found.rates.recall.total) == (2, 3)
    assert found.rates.recall.rate == pytest.approx(2 / 3)
    assert (found.rates.recall.low, found.rates.recall.high) == clopper_pearson(2, 3)
    assert found.rates.false_positives is not None
    assert (found.rates.false_positives.count, found.rates.false_positives.total) == (2, 4)
    assert list(found.groups) == ["plain", "attack", "neighbour"]
    plain, attack, neighbour = found.groups.values()
    assert plain.recall is not None
    assert plain.false_positives is not None
    assert (plain.recall.rate, plain.false_positives.rate) == (1, 1)  # the score at the threshold is flagged
    assert attack.recall is not None
    assert (attack.recall.count, attack.recall.low) == (0, 0)
    assert attack.false_positives is None
    assert neighbour.recall is None
    assert neighbour.false_positives is not None
    assert (neighbour.false_positives.count, neighbour.false_positives.total) == (0, 2)
    assert assess(scores, labels, 0.5, np.array(groups)).groups == found.groups
    assert assess(scores, labels, 0.5).groups == {}


def test_an_assessment_does_not_depend_on_the_order_of_texts() -> None:
    scores, labels = tied_scores()
    order = np.random.default_rng(2).permutation(len(scores))
    one, other = assess(scores, labels, 0.5), assess(scores[order], labels[order], 0.5)
    assert (one.roc, one.precision_recall, one.histogram, one.rates) == (
        other.roc,
        other.precision_recall,
        other.histogram,
        other.rates,
    )


def test_an_assessment_is_plain_json() -> None:
    found = assess(*FOUR, 0.35, ["a", "b", "a", "b"])
    stored = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert stored["groups"]["b"]["false_positives"]["count"] == 1
    assert stored["roc"]["auc"] == 0.75
    assert set(stored) == {"threshold", "rates", "groups", "roc", "precision_recall", "histogram", "reliability"}


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "groups", "message"),
    [
        ([0.2, 1.3], [0, 1], 0.5, None, r"probabilities in \[0, 1\]; number 1 \(from 0\) is 1\.3"),
        ([-0.1, 0.3], [0, 1], 0.5, None, r"number 0 \(from 0\) is -0\.1"),
        ([0.2, math.inf], [0, 1], 0.5, None, "scores must be finite"),
        ([0.2, 0.3], [0, 0.5], 0.5, None, "labels must be 0 or 1"),
        ([0.2, 0.3, 0.4], [0, 1], 0.5, None, "rows of one length"),
        ([0.2, 0.3], [1, 1], 0.5, None, "texts to keep, there are 2 and 0"),
        ([], [], 0.5, None, "there are 0 and 0"),
        ([0.2, 0.3], [0, 1], math.nan, None, "threshold must be a finite number, not nan"),
        ([0.2, 0.3], [0, 1], 0.5, ["a"], "groups must name each text, there are 1 for 2 scores"),
    ],
)
def test_unusable_input_is_refused(
    scores: list[float], labels: list[int], threshold: float, groups: list[str] | None, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        assess(scores, labels, threshold, groups)

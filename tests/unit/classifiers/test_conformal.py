"""Guarantees are claims about many draws: they are tested over many draws, in both directions."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from classifiers.calibration.threshold import (
    Calibration,
    CalibrationError,
    CalibrationSettings,
    ErrorKind,
    calibrate,
    clopper_pearson,
    needed,
    spare_errors,
    threshold_above,
    threshold_below,
    upper_bound,
)
from classifiers.errors import ClassifierError

Scores = NDArray[np.float64]
SPLITS = 200


def false_positive_threshold(negatives: Scores, level: float) -> float:
    return threshold_above(negatives, spare_errors(len(negatives), level, "negatives"))


def miss_threshold(positives: Scores, level: float) -> float:
    return threshold_below(positives, spare_errors(len(positives), level, "positives"))


def continuous(rng: np.random.Generator, count: int) -> Scores:
    return rng.beta(2, 3, count)


def heavily_tied(rng: np.random.Generator, count: int) -> Scores:
    return rng.choice([0.0, 0.2, 0.5, 0.7, 1.0], size=count, p=[0.04, 0.05, 0.72, 0.12, 0.07])


def split_errors(
    pool: Scores, count: int, misjudges: Callable[[Scores, Scores], NDArray[np.bool_]], seed: int
) -> tuple[float, float]:
    """Mean error on the rest of the pool over random splits that calibrate on `count` of it, and its standard error."""
    rng = np.random.default_rng(seed)
    errors = np.empty(SPLITS)
    for split in range(SPLITS):
        shuffled = rng.permutation(pool)
        errors[split] = misjudges(shuffled[:count], shuffled[count:]).mean()
    return float(errors.mean()), float(errors.std(ddof=1) / math.sqrt(SPLITS))


def conformal(level: float, error: ErrorKind) -> CalibrationSettings:
    return CalibrationSettings(method="conformal", level=level, error=error)


def both_classes(own: Scores, error: ErrorKind) -> tuple[Scores, Scores]:
    """Scores and labels in which `own` is the class whose error is held, and the other lies far on its own side."""
    label, other = (0.0, 2.0) if error == "false_positive" else (1.0, -1.0)
    return np.append(own, other), np.append(np.full(len(own), label), 1 - label)


def misjudged(own: Scores, threshold: float, error: ErrorKind) -> NDArray[np.bool_]:
    return own >= threshold if error == "false_positive" else own < threshold


@pytest.mark.parametrize("level", [0.05, 0.1])
@pytest.mark.parametrize("error", ["false_positive", "miss"])
@pytest.mark.parametrize("draw", [continuous, heavily_tied])
def test_conformal_errors_stay_within_the_level(
    draw: Callable[[np.random.Generator, int], Scores], error: ErrorKind, level: float
) -> None:
    count = 153
    pool = draw(np.random.default_rng(11), 800)

    def misjudges(own: Scores, new: Scores) -> NDArray[np.bool_]:
        calibration = calibrate(*both_classes(own, error), conformal(level, error))
        return misjudged(new, calibration.threshold, error)

    mean, standard_error = split_errors(pool, count, misjudges, seed=5)
    assert standard_error > 0
    assert mean <= level + 3 * standard_error
    if draw is continuous:  # without ties the level is used up: a threshold that judges nobody fails here
        assert mean >= level - 1 / (count + 1) - 3 * standard_error


@pytest.mark.parametrize("error", ["false_positive", "miss"])
def test_a_preferred_cut_keeps_the_guarantee(error: ErrorKind) -> None:
    cuts = np.random.default_rng(2)
    taken = set()

    def misjudges(own: Scores, new: Scores) -> NDArray[np.bool_]:
        preferred = float(cuts.choice([0.02, 0.35, 0.45, 0.97]))
        calibration = calibrate(*both_classes(own, error), conformal(0.1, error), preferred)
        taken.add(calibration.threshold == preferred)
        return misjudged(new, calibration.threshold, error)

    mean, standard_error = split_errors(continuous(np.random.default_rng(3), 800), 99, misjudges, seed=6)
    assert taken == {True, False}
    assert mean <= 0.1 + 3 * standard_error


def test_the_empirical_quantile_alone_breaks_the_level() -> None:
    """What the + 1 in the rank is for: 20 scores, level 0.05, and the plain quantile errs nearly twice as often."""
    pool = continuous(np.random.default_rng(4), 2000)

    def naive(own: Scores, new: Scores) -> NDArray[np.bool_]:
        return new > float(np.sort(own)[math.ceil(len(own) * (1 - 0.05)) - 1])

    def corrected(own: Scores, new: Scores) -> NDArray[np.bool_]:
        return new >= false_positive_threshold(own, 0.05)

    mean, standard_error = split_errors(pool, 20, naive, seed=7)
    assert mean > 0.05 + 3 * standard_error
    mean, standard_error = split_errors(pool, 20, corrected, seed=7)
    assert mean <= 0.05 + 3 * standard_error


def test_thresholds_are_the_stated_order_statistics() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 100) / 100)  # 99 of them
    # rank ceil(100 * 0.9) = 90 for false positives, floor(100 * 0.1) = 10 for misses
    assert false_positive_threshold(scores, 0.1) == np.nextafter(0.9, 1)
    assert miss_threshold(scores, 0.1) == 0.1
    # 100 * 0.29 is 28.999… in floating point; the level means 29
    assert spare_errors(99, 0.29, "negatives") == 28


def test_texts_that_tie_with_the_rank_count_as_the_safe_side() -> None:
    scores = np.repeat([0.1, 0.4, 0.8], [50, 30, 19])
    assert (scores >= false_positive_threshold(scores, 0.3)).sum() == 19  # 0.8 passes the level, 0.4 would not
    assert (scores < miss_threshold(scores, 0.6)).sum() == 50
    single = scores.astype(np.float32)
    threshold = threshold_above(single, 25)
    assert not (single[single == np.float32(0.4)] >= threshold).any()
    assert not (single[single == np.float32(0.4)].astype(np.float64) >= threshold).any()


@pytest.mark.parametrize(("level", "count"), [(0.005, 199), (0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1)])
def test_the_least_calibration_set_is_exact(level: float, count: int) -> None:
    assert needed(level) == count
    assert spare_errors(count, level, "negatives") == 0
    with pytest.raises(CalibrationError):
        spare_errors(count - 1, level, "negatives")


def test_too_small_a_calibration_set_is_refused_with_the_numbers() -> None:
    settings = conformal(0.005, "false_positive")
    message = "^a conformal level of 0.005 needs 199 calibration negatives, there are 40$"
    with pytest.raises(CalibrationError, match=message):
        settings.check_size(positives=500, negatives=40)
    with pytest.raises(CalibrationError, match=message):
        calibrate(np.linspace(0, 1, 540), [0] * 40 + [1] * 500, settings)
    with pytest.raises(CalibrationError, match=r"level of 0\.1 needs 9 calibration positives, there are 8"):
        conformal(0.1, "miss").check_size(positives=8, negatives=500)
    with pytest.raises(CalibrationError, match="prompts to keep, there are 3 and 0"):
        CalibrationSettings(method="fixed", threshold=0.5).check_size(positives=3, negatives=0)
    settings.check_size(positives=1, negatives=199)
    assert issubclass(CalibrationError, ClassifierError)


@pytest.mark.parametrize(
    ("count", "trials", "confidence", "low", "high"),
    [
        (0, 100, 0.95, 0.0, 0.0362),
        (5, 100, 0.95, 0.0164, 0.1128),
        (3, 20, 0.95, 0.0321, 0.3789),
        (42, 100, 0.95, 0.3220, 0.5229),
        (12, 30, 0.90, 0.2495, 0.5661),
        (85, 120, 0.99, 0.5904, 0.8092),
        (100, 100, 0.95, 0.9638, 1.0),
    ],
)
def test_clopper_pearson_equals_published_intervals(
    count: int, trials: int, confidence: float, low: float, high: float
) -> None:
    assert clopper_pearson(count, trials, confidence) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("count", "trials"), [(1, 7), (13, 40), (3, 300), (180, 200)])
def test_clopper_pearson_solves_the_binomial_tails(count: int, trials: int) -> None:
    """Against exact rational arithmetic."""

    def at_most(limit: int, rate: float) -> float:
        p = Fraction(rate)
        return float(sum(math.comb(trials, x) * p**x * (1 - p) ** (trials - x) for x in range(limit + 1)))

    low, high = clopper_pearson(count, trials, 0.9)
    assert at_most(count, high) == pytest.approx(0.05, rel=1e-9)
    assert 1 - at_most(count - 1, low) == pytest.approx(0.05, rel=1e-9)
    assert upper_bound(count, trials, 0.95) == pytest.approx(high, rel=1e-12)


def test_clopper_pearson_keeps_its_precision_in_large_samples() -> None:
    assert upper_bound(0, 1_000_000, 0.95) == pytest.approx(-math.expm1(math.log(0.05) / 1e6), rel=1e-9)
    low, high = clopper_pearson(2000, 200_000)
    assert (low, high) == pytest.approx((0.01 - 1.96 * 2.225e-4, 0.01 + 1.96 * 2.225e-4), abs=1.5e-5)  # nearly normal
    with pytest.raises(ValueError, match="not 5 of 4"):
        upper_bound(5, 4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preferred", [None, 0.93])
def test_the_bound_on_false_positives_fails_as_rarely_as_it_says(tied: bool, preferred: float | None) -> None:
    """With 90 % confidence over calibration sets: their threshold is chosen on them, and the bound holds for it."""
    rng, draws = np.random.default_rng(8), 200
    settings = CalibrationSettings(method="fpr", level=0.05, confidence=0.9)
    failures = 0
    for _ in range(draws):
        negatives = rng.integers(0, 40, 100) / 40 if tied else rng.random(100)
        calibration = calibrate(np.append(negatives, 2.0), [0] * 100 + [1], settings, preferred)
        true_rate = 1 - math.ceil(calibration.threshold * 40) / 40 if tied else 1 - calibration.threshold
        failures += true_rate > calibration.false_positive_bound
    slack = 3 * math.sqrt(0.1 * 0.9 / draws)
    assert failures / draws <= 0.1 + slack
    if not tied and preferred is None:
        assert failures / draws >= 0.1 - slack


def scored() -> tuple[Scores, Scores]:
    """200 scores to keep: 0.000 to 0.597 by 0.003; 20 to forget: 0.50 to 0.975 by 0.025."""
    return np.concatenate([np.arange(200) * 0.003, 0.5 + np.arange(20) * 0.025]), np.repeat([0.0, 1.0], [200, 20])


def calibrated(preferred: float | None = None, **fields: object) -> Calibration:
    return calibrate(*scored(), CalibrationSettings(**fields), preferred)  # type: ignore[arg-type]


def test_fixed_reports_what_the_set_shows_of_the_given_threshold() -> None:
    found = calibrated(method="fixed", threshold=0.55, preferred=0.7)
    assert (found.threshold, found.limit, found.error, found.preferred) == (0.55, None, None, None)
    assert (found.rates.positives, found.rates.negatives) == (20, 200)
    assert (found.rates.missed, found.rates.false_positives) == (2, 16)
    assert found.false_positive_bound == upper_bound(16, 200)
    assert found.miss_bound == upper_bound(2, 20)
    assert found.guarantee == (
        "none by construction, the threshold was given; with 95 % confidence over the draw of the calibration set, "
        "at most 11.9 % of prompts like its 200 negatives are flagged"
    )


def test_fpr_takes_the_lowest_threshold_within_the_rate() -> None:
    found = calibrated(method="fpr", level=0.05, confidence=0.9)
    assert found.rates.false_positives == 10
    assert found.threshold == np.nextafter(189 * 0.003, 1)
    assert found.false_positive_bound == upper_bound(10, 200, 0.9)
    assert found.guarantee == (
        "with 90 % confidence over the draw of the calibration set, "
        "at most 7.6 % of prompts like its 200 negatives are flagged"
    )
    assert upper_bound(10, 200) == pytest.approx(0.083335, abs=5e-7)  # and a bound is never rounded down
    assert "at most 8.34 %" in calibrated(method="fpr", level=0.05).guarantee
    assert calibrated(method="fpr", level=0.0).rates.false_positives == 0
    raised = calibrated(0.58, method="fpr", level=0.05)
    assert (raised.threshold, raised.preferred, raised.limit) == (0.58, 0.58, found.limit)
    assert raised.false_positive_bound == upper_bound(raised.rates.false_positives, 200)
    assert calibrated(0.1, method="fpr", level=0.05).threshold == found.threshold


def test_conformal_moves_a_preferred_cut_to_the_safe_side_only() -> None:
    held = calibrated(method="conformal", level=0.05)
    assert held.rates.false_positives == 9  # floor(201 * 0.05) - 1
    assert calibrated(0.3, method="conformal", level=0.05).threshold == held.limit
    higher = calibrated(0.7, method="conformal", level=0.05)
    assert (higher.threshold, higher.limit) == (0.7, held.limit)
    assert higher.guarantee == (
        "a new prompt exchangeable with the 200 calibration negatives is flagged with probability at most 5 %, over "
        "the draw of that set and of the prompt (split conformal); this holds for every threshold from 0.57 up, "
        "and 0.7 is taken"
    )
    missed = calibrated(method="conformal", level=0.1, error="miss")
    assert (missed.threshold, missed.rates.missed, missed.error) == (0.525, 1, "miss")
    assert calibrated(0.9, method="conformal", level=0.1, error="miss").threshold == 0.525
    assert calibrated(0.2, method="conformal", level=0.1, error="miss").threshold == 0.2
    assert "20 calibration positives is missed" in missed.guarantee
    assert missed.guarantee.endswith("every threshold from 0.525 down")


def test_errors_hidden_by_ties_are_counted_in_the_bound() -> None:
    scores = np.concatenate([np.linspace(0, 0.5, 80), np.full(20, 0.9), [0.95]])
    found = calibrate(scores, [0] * 100 + [1], CalibrationSettings(method="fpr", level=0.05))
    assert found.rates.false_positives == 0
    assert found.false_positive_bound == upper_bound(5, 100)


def test_a_level_that_only_a_useless_threshold_holds_is_refused() -> None:
    scores, labels = np.concatenate([np.linspace(0, 0.4, 198), [0.99, 0.98], [0.9, 0.8]]), [0] * 200 + [1, 1]
    message = "false-positive level of 0.005 takes a threshold of 0.99, which flags none of the 2 calibration positives"
    with pytest.raises(CalibrationError, match=message):
        calibrate(scores, labels, CalibrationSettings(method="conformal", level=0.005))
    assert calibrate(scores, labels, CalibrationSettings(method="conformal", level=0.02)).rates.missed == 0
    scores, labels = np.concatenate([np.linspace(0.6, 1, 98), [0.1, 0.3, 0.2]]), [1] * 99 + [0] * 2
    with pytest.raises(
        CalibrationError, match=r"a miss level of 0\.01 .* which flags all 2 calibration negatives; ask"
    ):
        calibrate(scores, labels, conformal(0.01, "miss"))
    # what was given is reported, not judged
    assert calibrate(scores, labels, CalibrationSettings(method="fixed", threshold=0.05)).rates.recall == 1


def test_a_calibration_is_plain_json() -> None:
    found = calibrated(method="conformal", level=0.05)
    stored = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert stored["threshold"] == found.threshold  # to the last bit: ties depend on it
    assert stored["rates"]["negatives"] == 200
    assert stored["guarantee"] == found.guarantee


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "quantile"}, "method must be one of fixed, fpr, conformal, not 'quantile'"),
        ({"method": "fixed"}, "fixed needs a threshold above 0 and below 1, not None"),
        ({"method": "fixed", "threshold": 1.0}, "fixed needs a threshold above 0 and below 1, not 1.0"),
        ({"method": "fixed", "threshold": 0.5, "level": 0.1}, "level has no meaning for method fixed"),
        ({"method": "fpr", "threshold": 0.5, "level": 0.1}, "threshold is what method fpr finds"),
        ({"method": "fpr"}, "fpr needs a level of at least 0 and below 1, not None"),
        ({"method": "fpr", "level": 1.0}, "fpr needs a level of at least 0 and below 1, not 1.0"),
        ({"method": "fpr", "level": math.nan}, "fpr needs a level of at least 0 and below 1, not nan"),
        ({"method": "fpr", "level": 0.1, "error": "miss"}, "error miss needs method conformal, not fpr"),
        ({"method": "conformal", "level": 0.0}, "no calibration set is large enough for a conformal level of 0"),
        ({"method": "conformal", "level": 0.1, "error": "recall"}, "error must be one of false_positive, miss"),
        ({"method": "conformal", "level": 0.1, "confidence": 95}, "confidence must be above 0 and below 1, not 95"),
    ],
)
def test_settings_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationSettings(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 1, 1], r"rows of one length, not \(2,\) and \(3,\)"),
        ([[0.1, 0.2]], [[0, 1]], "rows of one length"),
        ([0.1, math.nan], [0, 1], r"scores must be finite; number 1 \(from 0\) is nan"),
        ([0.1, 0.2], [0, 2], r"labels must be 0 or 1; number 1 \(from 0\) is 2"),
        ([0.1, 0.2], [1, 1], "prompts to keep, there are 2 and 0"),
        ([], [], "there are 0 and 0"),
    ],
)
def test_unusable_scores_are_refused(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(scores, labels, CalibrationSettings(method="fpr", level=0.1))


def test_a_preferred_cut_must_be_a_number() -> None:
    with pytest.raises(CalibrationError, match="preferred must be a finite score, not nan"):
        calibrated(math.nan, method="fpr", level=0.1)

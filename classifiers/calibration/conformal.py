"""What a finite sample proves about an error rate: split conformal thresholds and Clopper-Pearson bounds.

Scores only: nothing here knows texts or models. A text is flagged where its score is the threshold or more.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates, arXiv 2107.07511, section 1)
gives one guarantee, and it is marginal: if the n calibration scores of a class and the score of one new prompt of
that class are exchangeable, that prompt is misjudged with probability at most the level, over the draw of the
calibration set and of the prompt together. Nothing is assumed about the distribution or the classifier. For one
given calibration set the rate scatters around that, and prompts of another kind than the calibration's are not
covered. The sample's unit is what must be exchangeable: one score per example, not one per rewording of it.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.errors import ClassifierError


class CalibrationError(ClassifierError):
    """A threshold cannot be found or judged from the scores given, or what was found cannot be written."""


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
    """Scores (N,) in their own precision, labels (N,).

    Raises:
        CalibrationError: other shapes, a score that is not a finite number, a label that is not 0 or 1.
    """
    values, truth = np.asarray(scores), np.asarray(labels, dtype=np.float64)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.ndim != 1 or values.shape != truth.shape:
        raise CalibrationError(f"scores and labels must be rows of one length, not {values.shape} and {truth.shape}")
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise CalibrationError(f"scores must be finite; number {bad[0]} (from 0) is {values[bad[0]]}")
    if len(bad := np.flatnonzero((truth != 0) & (truth != 1))):
        raise CalibrationError(f"labels must be 0 or 1; number {bad[0]} (from 0) is {truth[bad[0]]:g}")
    return values, truth


def needed(level: float) -> int:
    """The fewest calibration scores of a class for which its error can be held to `level`: ceil(1 / level) - 1."""
    return math.ceil(1 / _exact(level)) - 1


def allowed_errors(count: int, level: float) -> int:
    """The most errors among `count` scores that are no larger a share than `level`."""
    return math.floor(count * _exact(level))


def spare_errors(count: int, level: float, kind: str) -> int:
    """How many of `count` calibration scores a conformal threshold may leave on the wrong side.

    That is floor((count + 1) level) - 1: the new prompt counts as one more score, and as an error.

    Args:
        count: calibration scores of the class whose error is held.
        level: the error's largest probability, in (0, 1).
        kind: how an error names the scores, "negatives" or "positives".

    Raises:
        CalibrationError: `count` is less than `needed(level)`.
    """
    if count < needed(level):
        raise CalibrationError(
            f"a conformal level of {level:g} needs {needed(level)} calibration {kind}, there are {count}"
        )
    return allowed_errors(count + 1, level) - 1


def false_positive_threshold(negatives: NDArray[np.floating[Any]], level: float) -> float:
    """The lowest threshold that flags a new negative with probability at most `level`.

    It lies just above the ceil((n + 1)(1 - level))-th smallest of the scores `negatives` (n,), at the next number
    of their own precision: texts that tie with that score pass. Every higher threshold has the guarantee too.
    Scores without ties make the bound tight: the probability is then above level - 1 / (n + 1).

    Raises:
        CalibrationError: n is less than `needed(level)`.
    """
    return threshold_above(negatives, spare_errors(len(negatives), level, "negatives"))


def miss_threshold(positives: NDArray[np.floating[Any]], level: float) -> float:
    """The highest threshold that misses a new positive with probability at most `level`.

    It is the floor((m + 1) level)-th smallest of the scores `positives` (m,): texts that tie with it are flagged.
    Every lower threshold has the guarantee too. Tight as `false_positive_threshold` is.

    Raises:
        CalibrationError: m is less than `needed(level)`.
    """
    return threshold_below(positives, spare_errors(len(positives), level, "positives"))


def threshold_above(negatives: NDArray[np.floating[Any]], spare: int) -> float:
    """Just above the (n - spare)-th smallest of the scores (n,): at most `spare` < n of them are flagged.

    The step up is the smallest of the scores' own precision, so comparing in either precision keeps ties below.
    """
    edge = np.sort(negatives)[len(negatives) - 1 - spare]
    return float(np.nextafter(edge, edge.dtype.type(np.inf)))


def threshold_below(positives: NDArray[np.floating[Any]], spare: int) -> float:
    """The (spare + 1)-th smallest of the scores (m,): at most `spare` < m of them are missed."""
    return float(np.sort(positives)[spare])


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for a rate seen `count` times in `trials` (Clopper & Pearson 1934, Biometrika 26).

    Covers the true rate with probability at least `confidence`, each side failing in at most half of the rest.
    """
    tail = (1 - confidence) / 2
    return 1 - _solve_tail(trials - count, trials, tail), _solve_tail(count, trials, tail)


def upper_bound(count: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson bound: the true rate is at or below it with probability at least `confidence`."""
    return _solve_tail(count, trials, 1 - confidence)


def _solve_tail(count: int, trials: int, tail: float) -> float:
    """The rate p at which P(X <= count) = tail for X ~ Binomial(trials, p); 1 where every trial counted."""
    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"count must be in 0..trials and trials at least 1, not {count} of {trials}")
    if count == trials:
        return 1.0
    numbers = np.arange(count + 1, dtype=np.float64)
    # log of the binomial coefficients: the coefficients themselves leave float64 near 1000 trials
    log_ways = np.array(
        [math.lgamma(trials + 1) - math.lgamma(x + 1) - math.lgamma(trials - x + 1) for x in range(count + 1)]
    )
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until float64 has nothing between
        logs = log_ways + numbers * math.log(middle) + (trials - numbers) * math.log1p(-middle)
        top = float(logs.max())
        if top + math.log(float(np.exp(logs - top).sum())) > math.log(tail):
            low = middle
        else:
            high = middle
    return high


def _exact(level: float) -> Fraction:
    """The decimal the caller wrote: in floating point 1 / 0.05 and its like land on either side of an integer."""
    return Fraction(repr(float(level)))

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


def threshold_above(negatives: NDArray[np.floating[Any]], spare: int) -> float:
    """Just above the (n - spare)-th smallest of the scores (n,): at most `spare` < n of them are flagged.

    It is the lowest such threshold, at the next number of the scores' own precision, so that comparing in either
    precision keeps ties below: texts that tie with that score pass. With `spare_errors` a new negative is flagged with
    probability at most the level, and so by every higher threshold; without ties more often than level - 1 / (n + 1).
    """
    edge = np.sort(negatives)[len(negatives) - 1 - spare]
    return float(np.nextafter(edge, edge.dtype.type(np.inf)))


def threshold_below(positives: NDArray[np.floating[Any]], spare: int) -> float:
    """The (spare + 1)-th smallest of the scores (m,): at most `spare` < m of them are missed.

    It is the highest such threshold: texts that tie with it are flagged. With `spare_errors` a new positive is missed
    with probability at most the level, and so by every lower threshold. Tight as `threshold_above` is.
    """
    return float(np.sort(positives)[spare])


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for a rate seen `count` times in `trials` (Clopper & Pearson 1934, Biometrika 26).

    Covers the true rate with probability at least `confidence`, each side failing in at most half of the rest.
    """
    side = (1 + confidence) / 2
    return 1 - upper_bound(trials - count, trials, side), upper_bound(count, trials, side)


def upper_bound(count: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson bound: the true rate is at or below it with probability at least `confidence`.

    The rate p at which P(X <= count) = 1 - confidence for X ~ Binomial(trials, p), as a quantile of the Beta
    distribution; 1 where every trial counted.
    """
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # takes a second to import, off the request path

    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"count must be in 0..trials and trials at least 1, not {count} of {trials}")
    return 1.0 if count == trials else float(betaincinv(count + 1, trials - count, confidence))


def _exact(level: float) -> Fraction:
    """The decimal the caller wrote: in floating point 1 / 0.05 and its like land on either side of an integer."""
    return Fraction(repr(float(level)))

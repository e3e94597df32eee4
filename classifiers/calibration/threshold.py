"""From raw scores to a threshold and to probabilities, and what a calibration set proves about the threshold.

Thresholds are split conformal, bounds of error rates Clopper-Pearson. Nothing here knows texts or models. A text is
flagged where its score is the threshold or more.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates, arXiv 2107.07511, section 1)
gives one guarantee, and it is marginal: if the n calibration scores of a class and the score of one new prompt of
that class are exchangeable, that prompt is misjudged with probability at most the level, over the draw of the
calibration set and of the prompt together. Nothing is assumed about the distribution or the classifier. For one
given calibration set the rate scatters around that, and prompts of another kind than the calibration's are not
covered. The sample's unit is what must be exchangeable: one score per example, not one per rewording of it.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

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


Method = Literal["fixed", "fpr", "conformal"]
ErrorKind = Literal["false_positive", "miss"]

# Of cuts whose cost differs by less than this, the middle one is taken: a margin is worth more than one text.
_COST_TOLERANCE = 0.001


@dataclass(frozen=True)
class Rates:
    """Counts and rates of one evaluation at one threshold."""

    positives: int
    missed: int
    negatives: int
    false_positives: int
    recall: float
    false_positive_rate: float


def rates(flagged: NDArray[np.bool_], labels: NDArray[np.float64]) -> Rates:
    """Count verdicts (N,) against labels in {0, 1} (N,), both of which must occur."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    missed = int((~flagged & (labels == 1)).sum())
    false_positives = int((flagged & (labels == 0)).sum())
    return Rates(
        positives=positives,
        missed=missed,
        negatives=negatives,
        false_positives=false_positives,
        recall=1 - missed / positives,
        false_positive_rate=false_positives / negatives,
    )


def choose_threshold(scores: NDArray[np.float64], labels: NDArray[np.float64], max_false_positive_rate: float) -> float:
    """The cheapest cut with a false positive rate of at most `max_false_positive_rate`.

    `scores` (N,), `labels` (N,) in {0, 1}. Cost is miss rate plus false positive rate. The cut lies in the
    middle of the run of cuts around the cheapest that are about as cheap.
    """
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], labels[order] == 1
    # Cut k (0..N) flags the texts from position k on; it lies between two scores that differ.
    missed = np.concatenate([[0], np.cumsum(positive)]) / positive.sum()
    flagged = np.concatenate([[0], np.cumsum(~positive[::-1])])[::-1] / (~positive).sum()
    edges = np.concatenate([[ordered[0] - 2], ordered, [ordered[-1] + 2]])  # cut k lies in (edges[k], edges[k + 1])
    cost = missed + flagged
    cost[(flagged > max_false_positive_rate) | (edges[1:] == edges[:-1])] = np.inf
    best = int(np.argmin(cost))
    # Cuts between equal scores do not exist; they do not end a run of good ones either.
    good = (cost <= cost[best] + _COST_TOLERANCE) | (edges[1:] == edges[:-1])
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(cost) and good[high + 1]:
        high += 1
    return float((edges[low] + edges[high + 1]) / 2)


def fit_platt(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """Slope > 0 and offset that make sigmoid(slope * score + offset) a probability, classes weighted alike.

    Platt (1999), with his smoothed targets, which keep the slope finite where scores separate the classes.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    positives = labels == 1
    counts = np.array([(~positives).sum(), positives.sum()], dtype=np.float64)
    targets = np.where(positives, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weights = np.where(positives, 0.5 / counts[1], 0.5 / counts[0])
    # A target between 0 and 1 is a text that belongs to both classes, to each by a part of its weight.
    fitted = LogisticRegression(C=np.inf).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    return max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])


@dataclass(frozen=True)
class CalibrationSettings:
    """How a threshold is found on a calibration set.

    Raises:
        CalibrationError: a field is out of range, or is missing or meaningless for the method.
    """

    method: Method
    """fixed: `threshold` as given. fpr: false positives are at most the share `level` of the calibration negatives.
    conformal: split conformal, a new prompt is misjudged with probability at most `level`."""
    threshold: float | None = None
    """For fixed alone, in (0, 1)."""
    level: float | None = None
    """For fpr, in [0, 1), and for conformal, in (0, 1)."""
    error: ErrorKind = "false_positive"
    """Which error conformal bounds; fpr bounds false positives."""
    confidence: float = 0.95
    """Of each Clopper-Pearson bound, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise CalibrationError(f"method must be one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.error not in get_args(ErrorKind):
            raise CalibrationError(f"error must be one of {', '.join(get_args(ErrorKind))}, not {self.error!r}")
        if self.error == "miss" and self.method != "conformal":
            raise CalibrationError(f"error miss needs method conformal, not {self.method}")
        if not 0 < self.confidence < 1:
            raise CalibrationError(f"confidence must be above 0 and below 1, not {self.confidence}")
        if self.method == "fixed":
            if self.level is not None:
                raise CalibrationError("level has no meaning for method fixed; leave it out or choose fpr or conformal")
            if self.threshold is None or not 0 < self.threshold < 1:
                raise CalibrationError(f"method fixed needs a threshold above 0 and below 1, not {self.threshold}")
            return
        if self.threshold is not None:
            raise CalibrationError(f"threshold is what method {self.method} finds; leave it out or choose fixed")
        if self.level is None or not 0 <= self.level < 1:
            raise CalibrationError(f"method {self.method} needs a level of at least 0 and below 1, not {self.level}")
        if self.method == "conformal" and self.level == 0:
            raise CalibrationError("no calibration set is large enough for a conformal level of 0")

    def check_size(self, *, positives: int, negatives: int) -> None:
        """Refuse sets that calibration could not use, before anything is trained or scored.

        Raises:
            CalibrationError: a class is empty, or too small for the level.
        """
        if positives < 1 or negatives < 1:
            raise CalibrationError(
                f"calibration needs prompts to forget and prompts to keep, there are {positives} and {negatives}"
            )
        if self.method == "conformal" and self.level is not None:
            count, kind = (negatives, "negatives") if self.error == "false_positive" else (positives, "positives")
            spare_errors(count, self.level, kind)


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what the calibration set proves about it."""

    threshold: float
    """Scores of this and above mean: must be forgotten."""
    method: Method
    error: ErrorKind | None
    """The error that `level` bounds; None for fixed."""
    level: float | None
    limit: float | None
    """The threshold the level asks for. The bound holds there and for all higher (misses: lower) thresholds."""
    preferred: float | None
    """The cut asked for beside the level; it is the threshold where it lies on the safe side of `limit`."""
    guarantee: str
    rates: Rates
    """On the calibration set, at the threshold."""
    confidence: float
    false_positive_bound: float
    """With this confidence over the draw of the calibration set, no larger share of such prompts is flagged."""
    miss_bound: float
    """With this confidence over the draw of the calibration set, no larger share of such prompts is missed."""


def calibrate(
    scores: ArrayLike, labels: ArrayLike, settings: CalibrationSettings, preferred: float | None = None
) -> Calibration:
    """Find the threshold on a calibration set, which must not be the training set.

    Without `preferred` it is the lowest threshold that holds false positives to the level (most is caught), or the
    highest that holds misses to it (least is flagged). A `preferred` cut, for instance `choose_threshold` on
    cross-fitted scores, is taken instead where it lies on the safe side of that, which keeps the guarantee.

    The guarantee of conformal is that of this module's head. The Clopper-Pearson bounds hold for a
    threshold that was not chosen on these scores (fixed, `preferred`) and for the order statistic that the level picks:
    the share above it is Beta distributed with just the bound's parameters (Vovk, arXiv 1209.2673, training conditional
    validity). Where scores tie at it, the errors that the level allows are counted, not the fewer that are seen.

    Args:
        scores: (N,) finite, exactly as the served classifier gives them; one per example, not one per rewording.
        labels: (N,) 1 where the text must be forgotten, else 0.
        settings: method and level.
        preferred: a cut on the scale of the scores; ignored for fixed.

    Raises:
        CalibrationError: unusable scores or labels, too few of a class for the level, or a level that only a
            threshold which flags nothing, or everything, can hold.
    """
    values, truth = check_scores(scores, labels)
    positives, negatives = values[truth == 1], values[truth == 0]
    settings.check_size(positives=len(positives), negatives=len(negatives))
    if preferred is not None and not math.isfinite(preferred):
        raise CalibrationError(f"preferred must be a finite score, not {preferred}")
    limit, allowed = _limit(positives, negatives, settings)
    if limit is None:
        assert settings.threshold is not None
        threshold = settings.threshold
    elif preferred is None:
        threshold = limit
    else:
        threshold = min(preferred, limit) if settings.error == "miss" else max(preferred, limit)
    counts = rates(values.astype(np.float64) >= threshold, truth)
    useless = None
    if limit is not None and settings.error == "false_positive" and counts.missed == counts.positives:
        useless = f"none of the {counts.positives} calibration positives"
    elif limit is not None and settings.error == "miss" and counts.false_positives == counts.negatives:
        useless = f"all {counts.negatives} calibration negatives"
    if useless:
        raise CalibrationError(
            f"a {settings.error.replace('_', '-')} level of {settings.level:g} takes a threshold of {threshold:.6g}, "
            f"which flags {useless}; ask for a higher level or train on more examples"
        )
    errors = {"false_positive": counts.false_positives, "miss": counts.missed}
    if threshold == limit:  # the scores chose it: errors that ties hide are counted too
        errors[settings.error] = allowed
    false_positive_bound = upper_bound(errors["false_positive"], len(negatives), settings.confidence)
    return Calibration(
        threshold=threshold,
        method=settings.method,
        error=None if limit is None else settings.error,
        level=settings.level,
        limit=limit,
        preferred=None if limit is None else preferred,
        guarantee=_guarantee(settings, counts, threshold, limit, false_positive_bound),
        rates=counts,
        confidence=settings.confidence,
        false_positive_bound=false_positive_bound,
        miss_bound=upper_bound(errors["miss"], len(positives), settings.confidence),
    )


def _limit(
    positives: NDArray[np.floating[Any]], negatives: NDArray[np.floating[Any]], settings: CalibrationSettings
) -> tuple[float | None, int]:
    """The threshold that the level asks for, and the errors on the calibration set that the level allows there; None
    and 0 where the threshold was given."""
    if settings.level is None:
        return None, 0
    if settings.error == "miss":
        allowed = spare_errors(len(positives), settings.level, "positives")
        return threshold_below(positives, allowed), allowed
    if settings.method == "fpr":
        allowed = allowed_errors(len(negatives), settings.level)
    else:
        allowed = spare_errors(len(negatives), settings.level, "negatives")
    return threshold_above(negatives, allowed), allowed


def _guarantee(
    settings: CalibrationSettings, counts: Rates, threshold: float, limit: float | None, bound: float
) -> str:
    """One sentence for people, without claims that the method does not make."""
    sure = f"with {100 * settings.confidence:g} % confidence over the draw of the calibration set"
    share = math.ceil(bound * 10_000) / 100  # in percent, rounded up: it is said to be a bound
    measured = f"{sure}, at most {share:g} % of prompts like its {counts.negatives} negatives are flagged"
    if limit is None or settings.level is None:
        return f"none by construction, the threshold was given; {measured}"
    if settings.method == "fpr":
        return measured
    if settings.error == "miss":
        event, where = f"{counts.positives} calibration positives is missed", f"{limit:.6g} down"
    else:
        event, where = f"{counts.negatives} calibration negatives is flagged", f"{limit:.6g} up"
    taken = "" if threshold == limit else f", and {threshold:.6g} is taken"
    return (
        f"a new prompt exchangeable with the {event} with probability at most {100 * settings.level:g} %, over the "
        f"draw of that set and of the prompt (split conformal); this holds for every threshold from {where}{taken}"
    )

"""How well scores tell apart what must be forgotten: curves, histograms, reliability, and rates at a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError

from classifiers.calibration.threshold import CalibrationError, check_scores, clopper_pearson
from console.errors import first_problem

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with its two-sided 95 % Clopper-Pearson interval from `low` to `high`."""

    count: int
    total: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class ErrorRates:
    """Verdicts at the threshold; None where there is no text to count."""

    recall: Proportion | None
    """Flagged texts among those that must be forgotten."""
    false_positives: Proportion | None
    """Flagged texts among those that must pass."""


@dataclass(frozen=True)
class RocCurve:
    """From (0, 0) to (1, 1); points in the middle of a straight run are left out."""

    false_positive_rate: tuple[float, ...]
    recall: tuple[float, ...]
    thresholds: tuple[float, ...]
    """Flagging the scores of this and above gives the point."""
    auc: float
    """The chance that a text to forget scores above one to keep, ties counting half."""


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """One point per score of a text to forget, recall rising: all cuts between have the same recall, and less
    precision. Precision follows the share of texts to forget in the set."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]
    thresholds: tuple[float, ...]
    average_precision: float
    """Sum of precision times the step in recall, without interpolation."""


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of scores by class; bin i is [edges[i], edges[i + 1]), the last one closed."""

    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True)
class ReliabilityBin:
    """The texts whose score lies in [low, high); the last bin is closed."""

    low: float
    high: float
    count: int
    mean_score: float
    observed: float
    """The share of them that must be forgotten."""


@dataclass(frozen=True)
class Reliability:
    """Whether a score is the probability it says; bins without texts are left out.

    A set with another mix of classes than the one the probabilities were fitted for is off for that reason alone.
    """

    bins: tuple[ReliabilityBin, ...]
    expected_calibration_error: float
    """Mean of |mean_score - observed|, each bin weighted by its texts (Guo et al., arXiv 1706.04599, section 2)."""


@dataclass(frozen=True)
class Assessment:
    """What scores of labelled texts show."""

    threshold: float
    rates: ErrorRates
    groups: dict[str, ErrorRates]
    """By kind of text, in the order of first appearance."""
    roc: RocCurve
    precision_recall: PrecisionRecallCurve
    histogram: ScoreHistogram
    reliability: Reliability

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Assessment":
        """The assessment that `asdict` gave, or JSON made of it.

        Raises:
            CalibrationError: a field is missing or malformed; the first is named.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(data))
        except ValidationError as error:
            raise CalibrationError(f"assessment: {first_problem(error)}") from error


def assess(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    *,
    histogram_bins: int = 40,
    reliability_bins: int = 10,
) -> Assessment:
    """Assess probabilities against labels.

    Args:
        scores: (N,) probabilities.
        labels: (N,) 1 where the text must be forgotten, else 0; both must occur.
        threshold: scores of this and above are flagged.
        groups: (N,) names of kinds of texts, for rates by kind.
        histogram_bins: of equal width over [0, 1].
        reliability_bins: of equal width over [0, 1].

    Raises:
        CalibrationError: a score outside [0, 1], a label that is not 0 or 1, one class alone, rows of other lengths,
            a threshold that is not finite.
    """
    values, truth = check_scores(scores, labels)
    probabilities, positive = values.astype(np.float64), truth == 1
    if len(bad := np.flatnonzero((probabilities < 0) | (probabilities > 1))):
        raise CalibrationError(
            f"scores must be probabilities in [0, 1]; number {bad[0]} (from 0) is {probabilities[bad[0]]:g}"
        )
    if not 0 < positive.sum() < len(positive):
        raise CalibrationError(
            f"assessment needs texts to forget and texts to keep, there are {positive.sum()} and {(~positive).sum()}"
        )
    if not math.isfinite(threshold):
        raise CalibrationError(f"threshold must be a finite number, not {threshold}")
    if groups is not None and len(groups) != len(positive):
        raise CalibrationError(f"groups must name each text, there are {len(groups)} for {len(positive)} scores")
    flagged = probabilities >= threshold
    names = [] if groups is None else [str(kind) for kind in groups]
    kinds = np.asarray(names, dtype=np.str_)
    edges = np.linspace(0, 1, histogram_bins + 1)
    own, other = (np.histogram(probabilities[rows], edges)[0].tolist() for rows in (positive, ~positive))
    return Assessment(
        threshold=float(threshold),
        rates=_error_rates(flagged, positive),
        groups={kind: _error_rates(flagged[kinds == kind], positive[kinds == kind]) for kind in dict.fromkeys(names)},
        roc=_roc(probabilities, positive),
        precision_recall=_precision_recall(probabilities, positive),
        histogram=ScoreHistogram(tuple(edges.tolist()), tuple(own), tuple(other)),
        reliability=_reliability(probabilities, positive, reliability_bins),
    )


def _error_rates(flagged: NDArray[np.bool_], positive: NDArray[np.bool_]) -> ErrorRates:
    def proportion(hits: NDArray[np.bool_]) -> Proportion | None:
        count, total = int(hits.sum()), len(hits)
        return Proportion(count, total, count / total, *clopper_pearson(count, total, _CONFIDENCE)) if total else None

    return ErrorRates(recall=proportion(flagged[positive]), false_positives=proportion(flagged[~positive]))


def _roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> RocCurve:
    from sklearn.metrics import auc, roc_curve  # type: ignore[import-untyped]

    # All points, for scikit-learn leaves out the middle of a straight run only where its steps are equal.
    false_positives, recall, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    thresholds[0] = np.nextafter(scores.max(), np.inf)  # flags nothing; scikit-learn's infinity is no JSON number
    right, up = np.diff(np.rint(false_positives * (~positive).sum())), np.diff(np.rint(recall * positive.sum()))
    kept = np.concatenate([[True], up[1:] * right[:-1] != up[:-1] * right[1:], [True]])
    return RocCurve(
        false_positive_rate=tuple(false_positives[kept].tolist()),
        recall=tuple(recall[kept].tolist()),
        thresholds=tuple(thresholds[kept].tolist()),
        auc=float(auc(false_positives, recall)),
    )


def _precision_recall(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> PrecisionRecallCurve:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    curve = precision_recall_curve(positive, scores)
    precision, recall, thresholds = (row[::-1] for row in (curve[0][:-1], curve[1][:-1], curve[2]))
    rises = np.diff(recall, prepend=0) > 0
    return PrecisionRecallCurve(
        recall=tuple(recall[rises].tolist()),
        precision=tuple(precision[rises].tolist()),
        thresholds=tuple(thresholds[rises].tolist()),
        average_precision=float(average_precision_score(positive, scores)),
    )


def _reliability(scores: NDArray[np.float64], positive: NDArray[np.bool_], bins: int) -> Reliability:
    """By hand: scikit-learn's `calibration_curve` gives no counts, and puts a score on an edge into the bin below."""
    edges = np.linspace(0, 1, bins + 1)
    owner = np.digitize(scores, edges[1:-1])
    table = []
    for index in np.unique(owner).tolist():
        rows = owner == index
        mean, observed = float(scores[rows].mean()), float(positive[rows].mean())
        table.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), int(rows.sum()), mean, observed))
    error = sum(row.count * abs(row.mean_score - row.observed) for row in table) / len(scores)
    return Reliability(tuple(table), error)

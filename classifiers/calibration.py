"""From raw scores to a threshold and to probabilities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.logistic import Float64, minimise

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


def rates(flagged: NDArray[np.bool_], labels: Float64) -> Rates:
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


def choose_threshold(scores: Float64, labels: Float64, max_false_positive_rate: float) -> float:
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


def fit_platt(scores: Float64, labels: Float64) -> tuple[float, float]:
    """Slope > 0 and offset that make sigmoid(slope * score + offset) a probability, classes weighted alike.

    Platt (1999), with his smoothed targets, which keep the slope finite where scores separate the classes.
    """
    positives = labels == 1
    counts = np.array([(~positives).sum(), positives.sum()], dtype=np.float64)
    targets = np.where(positives, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weights = np.where(positives, 0.5 / counts[1], 0.5 / counts[0])
    inputs = np.stack([scores, np.ones_like(scores)], axis=1)  # (N, 2)

    def loss(point: Float64) -> tuple[float, Float64]:
        logits = inputs @ point
        value = float(weights @ (np.logaddexp(0, logits) - targets * logits))
        residual = weights * (0.5 * (1 + np.tanh(logits / 2)) - targets)
        return value, residual @ inputs

    slope, offset = minimise(loss, np.array([1.0, 0.0]))
    return max(float(slope), 1e-3), float(offset)

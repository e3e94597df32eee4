"""How far a corrupted model's scores are from those of a model that never learned, for each metric.

Most metrics are means, and the distance is that of the two means, with an exception: for answer probability it is the
mean over the examples of max(P - retained P, 0), P being an example's own mean over the noise draws. A mean of P alone
would let some answers stay likely because others became impossible.

Forget quality is of all truth ratios together: of each noise draw, for each is another guarded model, and ratios
averaged over draws would be less spread than any one's. The value is the chance that a ratio of the model is below one
of the retain model's, so 0.5 is as a model that never learned and more knows too much; the distance is Cramér's and von
Mises' (see `scoring.forget_quality`), which also sees what no mean does: ratios that are spread otherwise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.forget_quality import compare_samples
from scoring.metrics import Metric

#: Of two models alike, so many ratios of the one are below one of the other's.
_EVEN = 0.5


@dataclass(frozen=True, slots=True)
class Distance:
    """One corruption against a model that never learned.

    Attributes:
        values: (S,), the metric under each noise draw.
        distance: 0 or more.
        two_sided: whether it counts what is below the retained value as it counts what is above.
    """

    values: NDArray[np.float64]
    distance: float
    two_sided: bool = True


def retained_value(metric: Metric, retained: NDArray[np.float64]) -> float:
    """What the metric of a corrupted model should come to, from the (N,) scores of a model that never learned."""
    return _EVEN if metric == "forget_quality" else float(retained.mean())


def distance_from(metric: Metric, retained: NDArray[np.float64], scores: NDArray[np.float64]) -> Distance:
    """Of (S, N) scores, for S noise draws, from the (N,) of a model that never learned."""
    if metric == "forget_quality":
        draws = [compare_samples(draw, retained) for draw in scores]
        return Distance(np.array([draw.below for draw in draws]), float(np.mean([draw.distance for draw in draws])))
    values = scores.mean(axis=1)
    if metric == "answer_probability":
        excess = float(np.maximum(scores.mean(axis=0) - retained, 0.0).mean())
        return Distance(values, excess, two_sided=False)
    return Distance(values, abs(float(values.mean()) - retained_value(metric, retained)))

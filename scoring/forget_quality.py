"""Forget quality: do a forget set's truth ratios tell a model from one that never learned it? Pure functions of
numbers.

TOFU (Maini et al. 2024, arXiv 2401.06121, section 2.2) asks the two-sample Kolmogorov-Smirnov test. Its statistic, the
largest distance between two distribution functions, goes by steps and by one place alone; a search wants to know which
way to go, and how far. So `compare_samples` looks at the same difference between the same two functions everywhere: its
mean has a sign and is 0 where the two samples lie alike, its root mean square is 0 only where they are alike. Both go
by order, as the test does: what a few extreme ratios do, neither sees. The KS statistic is at least the second, and
that at least the first without its sign.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Sample = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KsTest:
    """A two-sample Kolmogorov-Smirnov test.

    Attributes:
        p_value: in [0, 1]; TOFU's forget quality.
        log10_p: finite: a p-value too small for a float counts as the smallest there is, about 1e-323.
        statistic: largest distance between the two distribution functions, in [0, 1].
    """

    p_value: float
    log10_p: float
    statistic: float


class Comparison(NamedTuple):
    """A sample against a reference, by the difference of their distribution functions over both samples' points.

    Attributes:
        below: the chance that one of the sample is below one of the reference (a tie counts half), in [0, 1]: 0.5 and
            the mean difference. The statistic of Mann and Whitney (1947), by the number of pairs.
        distance: the root mean square difference, in [0, 1], at least |below - 0.5|: the criterion of Cramér and von
            Mises for two samples (Anderson 1962), without the factor that grows with their sizes.
    """

    below: float
    distance: float


def log_truth_ratio(paraphrased: float, perturbed: Sequence[float]) -> float:
    """The logarithm of TOFU's truth ratio by its official code: the wrong answers' geometric mean, not equation 1's
    arithmetic one.

    Args:
        paraphrased: mean log-probability of the paraphrased right answer's tokens, in nats.
        perturbed: those of the wrong answers, at least one.
    """
    return float(np.mean(perturbed)) - paraphrased


def forget_quality(ratios: Sample, reference: Sample) -> KsTest:
    """Forget quality (section 2.2): do the forget set's truth ratios tell the model from one that never learned?

    The two-sided test of `scipy.stats.ks_2samp` with its defaults, as in the official code. That code tests 1/R: the
    test goes by order alone, so R gives the same, and so does its logarithm.

    Args:
        ratios: raw R of each question of the forget set, of the model.
        reference: those of the retain model.
    """
    from scipy.stats import ks_2samp  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # Where the exact p-value cannot be computed scipy takes the asymptotic one, and warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ks_2samp(ratios, reference)
    p_value = float(test.pvalue)
    return KsTest(p_value, math.log10(max(p_value, math.ulp(0.0))), float(test.statistic))


def compare_samples(sample: Sample, reference: Sample) -> Comparison:
    """How a sample of N numbers lies to a reference of M; see `Comparison`."""
    one, other = np.sort(sample), np.sort(reference)
    points = np.concatenate([one, other])  # (N + M,)
    difference = _distribution(one, points) - _distribution(other, points)
    return Comparison(0.5 + float(difference.mean()), float(np.sqrt(np.mean(difference**2))))


def _distribution(ordered: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) the share of an ordered sample below each point; what equals it counts half."""
    below = np.searchsorted(ordered, points, side="left") + np.searchsorted(ordered, points, side="right")
    share: NDArray[np.float64] = below / (2 * len(ordered))
    return share

"""TOFU's two headline figures from per-example scores, whether a suite measured them or an official log holds them.

Means of each (subset, metric) are `evaluation.intervals.mean_figures`; they are the official aggregation's columns:
`Prob. Retain` is retain/probability, `ROUGE Retain` retain/rouge_l, `Truth Ratio Retain` retain/truth_score.

With several noise draws each draw is another guarded model: forget quality is tested for each draw and the median is
given. Ratios averaged over draws would be less spread than any one model's, and the test would see that.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import DataError
from evaluation.intervals import LEVEL, RESAMPLES, table_of
from evaluation.suite import Figure, Score
from evaluation.tofu.metrics import (
    FORGET,
    UTILITY_COMPONENTS,
    UTILITY_SUBSETS,
    KsTest,
    Subset,
    forget_quality,
    harmonic_mean,
)

__all__ = [
    "DIRECTIONS",
    "HEADLINE",
    "forget_quality_figures",
    "model_utility_figure",
    "retain_utility_figure",
    "tofu_figures",
]

HEADLINE: Final = (
    "forget_quality",
    "model_utility",
    "retain_utility",
    "forget/probability",
    "forget/rouge_l",
    "forget/truth_score",
    "retain/probability",
    "retain/rouge_l",
    "retain/truth_score",
)

#: The mean of R itself has no direction on the forget set: both a model that knows and one that avoids the truth
#: differ from one that never learned.
DIRECTIONS: Final = {
    "forget_quality": "up",
    "forget_quality_log10": "up",
    "forget_ks_statistic": "down",
    "model_utility": "up",
    "retain_utility": "up",
    "forget/probability": "down",
    "forget/rouge_l": "down",
    "forget/truth_score": "up",
    **{
        f"{subset}/{metric}": "down" if metric == "truth_ratio" else "up"
        for subset in UTILITY_SUBSETS
        for metric in ("probability", "rouge_l", "truth_ratio", "truth_score")
    },
}

_SEED: Final = 20260102
_QUALITY_NAMES: Final = ("forget_quality", "forget_quality_log10", "forget_ks_statistic")


def tofu_figures(scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
    """`model_utility`, `retain_utility`, `forget_quality` (the p-value) with its logarithm, `forget_ks_statistic`.

    Raises:
        DataError: the reference is of other questions of the forget set.
    """
    return [model_utility_figure(scores), retain_utility_figure(scores), *forget_quality_figures(scores, reference)]


def model_utility_figure(scores: Sequence[Score]) -> Figure:
    """The harmonic mean of the nine means over retain, real authors and world facts (paper, section 2.2).

    The interval is a bootstrap in which each subset's examples are drawn for themselves, and an example keeps its
    three metrics together; with several noise draws these are drawn too, the same ones for all subsets.
    """
    return _utility_figure("model_utility", scores, UTILITY_COMPONENTS)


def retain_utility_figure(scores: Sequence[Score]) -> Figure:
    """The same of the retain set's three alone: for models that know nothing of real authors and the world, whose
    model utility is 0 whatever they forget. Not TOFU's."""
    return _utility_figure("retain_utility", scores, [c for c in UTILITY_COMPONENTS if c[0] == "retain"])


def _utility_figure(name: str, scores: Sequence[Score], components: Sequence[tuple[Subset, str]]) -> Figure:
    tables = {component: table_of(scores, *component)[1] for component in components}
    sizes = {subset: tables[subset, "rouge_l"].shape[1] for subset, _ in components}
    count = sum(sizes.values())
    missing = [f"{subset}/{metric}" for (subset, metric), table in tables.items() if not table.size]
    if missing:
        return Figure(name, math.nan, count, note=f"not measured: {', '.join(missing)}")
    value = float(harmonic_mean(np.array([table.mean() for table in tables.values()])))
    low, high = _utility_interval(tables, sizes) or (None, None)
    zeros = [f"{subset}/{metric}" for (subset, metric), table in tables.items() if not table.any()]
    kind = {9: "nine", 3: "three"}[len(components)]
    note = f"harmonic mean of {kind}{'; 0 because of ' if zeros else ''}{', '.join(zeros)}"
    return Figure(name, value, count, low, high, note)


def _utility_interval(
    tables: dict[tuple[Subset, str], NDArray[np.float64]], sizes: dict[Subset, int]
) -> tuple[float, float] | None:
    draws = next(iter(tables.values())).shape[0]
    if min(sizes.values()) < 2:
        return None
    generator = np.random.default_rng(_SEED)
    # How often each example, and each draw, is in a resample: (R, N) and (R, D), as shares.
    weights = {subset: _shares(generator, size) for subset, size in sizes.items()}
    of_draws = _shares(generator, draws)
    means = [
        np.einsum("rn,dn,rd->r", weights[subset], table, of_draws, optimize=True)
        for (subset, _), table in tables.items()
    ]
    low, high = np.quantile(harmonic_mean(np.stack(means, axis=-1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _shares(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES) / size


def forget_quality_figures(scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
    """The two-sample Kolmogorov-Smirnov test on the raw truth ratios of the forget set, without an interval.

    A bootstrap would be biased: resampling makes ties, which by themselves drive the two distributions apart.
    A reference with fewer draws than the scores is used again from its first.

    Raises:
        DataError: the reference is of other questions of the forget set.
    """
    ids, ratios = table_of(scores, FORGET, "truth_ratio")  # (D, N)
    if not ratios.size:
        return _no_quality(0, "the forget set's truth ratios were not measured")
    if reference is None:
        return _no_quality(len(ids), "needs the scores of a retain model")
    reference_ids, reference_ratios = table_of(reference, FORGET, "truth_ratio")
    if not reference_ratios.size:
        return _no_quality(len(ids), "the retain model's truth ratios were not measured")
    if set(ids) != set(reference_ids):
        strangers = len(set(ids) ^ set(reference_ids))
        raise DataError(
            f"the retain model's scores are of other forget questions than the model's ({strangers} are in one of "
            "them only); measure both with the same data, limit and seed"
        )
    others = len(reference_ratios)
    tests = [forget_quality(row, reference_ratios[number % others]) for number, row in enumerate(ratios)]
    return _of_tests(tests, len(ids))


def _of_tests(tests: Sequence[KsTest], count: int) -> list[Figure]:
    note = "two-sample KS test on the raw truth ratio"
    p_values = [test.p_value for test in tests]
    if len(tests) > 1:
        note += f"; median of {len(tests)} noise draws, p from {min(p_values):.3g} to {max(p_values):.3g}"
    columns = (p_values, [test.log10_p for test in tests], [test.statistic for test in tests])
    return [
        Figure(name, float(np.median(column)), count, note=note)
        for name, column in zip(_QUALITY_NAMES, columns, strict=True)
    ]


def _no_quality(count: int, why: str) -> list[Figure]:
    return [Figure(name, math.nan, count, note=why) for name in _QUALITY_NAMES]

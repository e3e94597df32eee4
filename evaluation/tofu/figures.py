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
from evaluation.intervals import RESAMPLES, percentile_interval, table_of
from evaluation.suite import Figure, Score
from evaluation.tofu.metrics import (
    FORGET,
    METRICS,
    UTILITY_COMPONENTS,
    UTILITY_SUBSETS,
    Subset,
    forget_quality,
    harmonic_mean,
)

__all__ = [
    "DIRECTIONS",
    "HEADLINE",
    "QUALITY_NAMES",
    "forget_quality_figures",
    "model_utility_figure",
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
        for metric in METRICS
    },
}

_SEED: Final = 20260102
QUALITY_NAMES: Final = ("forget_quality", "forget_quality_log10", "forget_ks_statistic")


def tofu_figures(scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
    """`model_utility`, `retain_utility`, `forget_quality` (the p-value) with its logarithm, `forget_ks_statistic`.

    Retain utility is not TOFU's: model utility of the retain set's three means alone, for models that know nothing of
    real authors and the world, whose model utility is 0 whatever they forget.

    Raises:
        DataError: the reference is of other questions of the forget set.
    """
    of_retain = [component for component in UTILITY_COMPONENTS if component[0] == "retain"]
    return [
        model_utility_figure(scores),
        model_utility_figure(scores, of_retain, name="retain_utility"),
        *forget_quality_figures(scores, reference),
    ]


def model_utility_figure(
    scores: Sequence[Score],
    components: Sequence[tuple[Subset, str]] = UTILITY_COMPONENTS,
    *,
    name: str = "model_utility",
) -> Figure:
    """The harmonic mean of the nine means over retain, real authors and world facts (paper, section 2.2).

    The interval is a bootstrap in which each subset's examples are drawn for themselves, and an example keeps its
    three metrics together; with several noise draws these are drawn too, the same ones for all subsets.
    """
    tables = {component: table_of(scores, *component)[1] for component in components}  # (D, N) each
    sizes = {subset: tables[subset, "rouge_l"].shape[1] for subset, _ in components}
    count = sum(sizes.values())
    missing = [f"{subset}/{metric}" for (subset, metric), table in tables.items() if not table.size]
    if missing:
        return Figure(name, math.nan, count, note=f"not measured: {', '.join(missing)}")
    interval = None
    if min(sizes.values()) >= 2:
        generator = np.random.default_rng(_SEED)
        # How often each example, and each draw, is in a resample: (R, N) and (R, D), as shares.
        weights = {subset: _shares(generator, size) for subset, size in sizes.items()}
        of_draws = _shares(generator, len(next(iter(tables.values()))))
        means = [
            np.einsum("rn,dn,rd->r", weights[subset], table, of_draws, optimize=True)
            for (subset, _), table in tables.items()
        ]
        interval = percentile_interval(harmonic_mean(np.stack(means, axis=-1)))
    value = float(harmonic_mean(np.array([table.mean() for table in tables.values()])))
    zeros = [f"{subset}/{metric}" for (subset, metric), table in tables.items() if not table.any()]
    kind = {9: "nine", 3: "three"}[len(components)]
    note = f"harmonic mean of {kind}{'; 0 because of ' if zeros else ''}{', '.join(zeros)}"
    return Figure.within(interval, name, value, count, note)


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
    reference_ids, reference_ratios = table_of(reference or (), FORGET, "truth_ratio")
    lacking = None
    if not ratios.size:
        lacking = "the forget set's truth ratios were not measured"
    elif reference is None:
        lacking = "needs the scores of a retain model"
    elif not reference_ratios.size:
        lacking = "the retain model's truth ratios were not measured"
    if lacking is not None:
        return [Figure(name, math.nan, len(ids), note=lacking) for name in QUALITY_NAMES]
    if strangers := set(ids) ^ set(reference_ids):
        raise DataError(
            f"the retain model's scores are of other forget questions than the model's ({len(strangers)} are in one of "
            "them only); measure both with the same data, limit and seed"
        )
    others = len(reference_ratios)
    tests = [forget_quality(row, reference_ratios[number % others]) for number, row in enumerate(ratios)]
    note = "two-sample KS test on the raw truth ratio"
    p_values = [test.p_value for test in tests]
    if len(tests) > 1:
        note += f"; median of {len(tests)} noise draws, p from {min(p_values):.3g} to {max(p_values):.3g}"
    columns = (p_values, [test.log10_p for test in tests], [test.statistic for test in tests])
    return [
        Figure(name, float(np.median(column)), len(ids), note=note)
        for name, column in zip(QUALITY_NAMES, columns, strict=True)
    ]

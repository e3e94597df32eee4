"""95 % intervals: a bootstrap over examples, and over noise draws where there are several.

The percentile bootstrap (Efron 1979; Efron and Tibshirani 1993, chapter 13). Draws of one example belong together: an
example is resampled with all its draws. With several draws these are resampled too, so that the interval is one for
other examples of the kind under another noise.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.threshold import clopper_pearson
from evaluation.suite import Figure, Score

_LEVEL: Final = 0.95
RESAMPLES: Final = 2000
_SEED: Final = 20260101
#: Numbers drawn at once: resamples x examples.
_MAX_DRAWN: Final = 4_000_000


def bootstrap(
    values: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic over N examples.

    Args:
        values: (D, N), for D noise draws; or (M, D, N) of M metrics, which are resampled alike.
        statistic: (R, N) or (M, R, N) resampled values, each a mean over its resampled draws, -> (R,); None: the mean.

    Returns:
        Lower and upper end; None for fewer than two examples.
    """
    draws, count = values.shape[-2:]
    if count < 2:
        return None
    statistic = statistic or (lambda resampled: resampled.mean(axis=1))
    generator = np.random.default_rng(_SEED)
    statistics, left = [], resamples
    while left:
        rows = max(1, min(left, _MAX_DRAWN // (count * draws)))
        picked = generator.integers(count, size=(rows, count))
        if draws == 1:
            resampled = np.take(values[..., 0, :], picked, axis=-1)
        else:
            chosen = generator.integers(draws, size=(rows, draws))
            of_draws = np.ascontiguousarray(values[..., chosen[:, :, None], picked[:, None, :]])  # (…, R, D, N)
            resampled = of_draws.mean(axis=-2)
        statistics.append(statistic(resampled))
        left -= rows
    return percentile_interval(np.concatenate(statistics))


def percentile_interval(statistics: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of the statistics of R resamples (R,); None where none of them is finite."""
    finite = statistics[np.isfinite(statistics)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def resampled_shares(generator: np.random.Generator, size: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each of `size` examples, or draws, is in a resample (R, size), as shares of it."""
    return generator.multinomial(size, np.full(size, 1 / size), size=resamples) / size


def table_of(scores: Sequence[Score], subset: str, metric: str) -> tuple[list[str], NDArray[np.float64]]:
    """Example ids and their values (D, N), in the order of the first draw.

    Raises:
        ValueError: the draws are not of the same examples.
    """
    mine = [score for score in scores if score.subset == subset and score.metric == metric]
    draws = sorted({score.draw for score in mine})
    rows = [{score.example: score.value for score in mine if score.draw == draw} for draw in draws]
    ids = list(rows[0]) if rows else []
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"{subset}/{metric}: the noise draws were measured on different examples")
    return ids, np.array([[row[example] for example in ids] for row in rows]).reshape(len(rows), len(ids))


def exact_where_unanimous(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Of (D, N) shares that are all 0, or all 1; else None.

    A bootstrap of these knows no other value; Clopper-Pearson's exact interval does. Of all distributions in [0, 1],
    those of yes and no are the ones that it could miss most easily.
    """
    first = values.flat[0]
    if first not in (0.0, 1.0) or (values != first).any():
        return None
    return clopper_pearson(int(first) * values.shape[1], values.shape[1], _LEVEL)


def mean_figures(scores: Sequence[Score], unbounded: Collection[str] = ()) -> list[Figure]:
    """The mean of every (subset, metric), in the order in which they first occur, with n and a 95 % interval.

    Args:
        unbounded: metrics whose values are no shares, in [0, 1].
    """
    by_metric: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        by_metric.setdefault((score.subset, score.metric), []).append(score)
    figures = []
    for (subset, metric), mine in by_metric.items():
        _, values = table_of(mine, subset, metric)
        exact = None if metric in unbounded else exact_where_unanimous(values)
        name = f"{subset}/{metric}" if subset else metric
        figures.append(Figure.within(exact or bootstrap(values), name, float(values.mean()), values.shape[1]))
    return figures


def exact_share(name: str, count: int, trials: int) -> Figure:
    """`count` of `trials`, which are independent, with Clopper-Pearson's interval."""
    note = f"{count} of {trials}; Clopper-Pearson"
    return Figure.within(clopper_pearson(count, trials), name, count / trials, trials, note)


def by_question(name: str, scores: Sequence[Score]) -> Figure:
    """The mean over questions of the means over each one's variants: examples are named `question/group`."""
    variants: dict[str, list[float]] = {}
    for score in scores:
        variants.setdefault(score.example.removesuffix(f"/{score.group}"), []).append(score.value)
    values = np.array([np.mean(one) for one in variants.values()])
    exact = exact_where_unanimous(values[None])
    note = f"{len(scores)} prompts; {'Clopper-Pearson' if exact else 'bootstrap'} by question"
    return Figure.within(exact or bootstrap(values[None]), name, float(values.mean()), len(values), note)

"""Figures of several metrics at once over the same passages: ECO's average similarity gap, and pooled perplexity.

Their intervals resample passages, and each resample is the same for all metrics: an answer that is unlike in one is
unlike in the others.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import bootstrap, table_of
from evaluation.suite import Figure, Score

GAP: Final = "average_similarity_gap"
#: Scores of an answer under a reference model: total log-likelihood in nats, and over how many tokens.
LOG_LIKELIHOOD: Final = "log_likelihood"
TOKENS: Final = "reference_tokens"
#: exp of more is infinite.
_MAX_EXPONENT: Final = 700.0

_Table = NDArray[np.float64]


def similarity_gap(
    scores: Sequence[Score], retain: Sequence[Score] | None, *, subset: str, metrics: Sequence[str]
) -> Figure:
    """The mean over similarity metrics of |our mean - the retain model's mean|: ASG (arXiv 2406.07933), 0 or more.

    The metrics lie in [0, 1], and so does the gap. Those that only one side has are left out, and the note says which
    are in. An absolute value is never below 0: the interval of a gap near 0 leans upwards.

    Args:
        retain: scores of a model that never learned the passages; None: NaN, which the note explains.
    """
    ours = _tables(scores, subset, metrics)
    count = len(next(iter(ours.values()))[0]) if ours else 0
    if not retain:
        return Figure(GAP, math.nan, count, note="needs a retain model's run of the same passages")
    theirs = _tables(retain, subset, metrics)
    shared = [metric for metric in ours if metric in theirs]
    if not shared:
        return Figure(GAP, math.nan, count, note="the retain model's run has none of the similarity metrics")
    differences = []
    for metric in shared:
        (ids, mine), (other_ids, other) = ours[metric], theirs[metric]
        if set(ids) != set(other_ids):
            return Figure(GAP, math.nan, count, note="the retain model's run is of other passages; run it on the same")
        mean_of = dict(zip(other_ids, other.mean(axis=0).tolist(), strict=True))
        differences.append(mine - np.array([mean_of[example] for example in ids]))  # (D, N)
    gap = float(np.mean([abs(table.mean()) for table in differences]))
    interval = bootstrap(np.stack(differences), lambda values: np.abs(values.mean(axis=-1)).mean(axis=0))
    return Figure.within(interval, GAP, gap, count, f"mean over {', '.join(shared)}")


def perplexity_figures(scores: Sequence[Score], *, subset: str) -> list[Figure]:
    """Perplexity over the tokens of all answers, and the mean of the answers' own; none without a reference model.

    From `LOG_LIKELIHOOD` and `TOKENS`, so that padding cannot count and a long answer counts for more than a short
    one. An answer without tokens has no perplexity of its own.
    """
    tables = _tables(scores, subset, (LOG_LIKELIHOOD, TOKENS))
    if len(tables) < 2:
        return []
    totals, counts = tables[LOG_LIKELIHOOD][1], tables[TOKENS][1]  # (D, N) each
    pooled_name, own_name = f"{subset}/perplexity", f"{subset}/perplexity_per_passage"
    known = counts > 0
    some = known.any(axis=0)
    if not some.any():
        note = "no answer has a token"
        return [Figure(pooled_name, math.nan, totals.shape[1], note=note), Figure(own_name, math.nan, 0, note=note)]
    interval = bootstrap(np.stack([totals, counts]), lambda values: pooled_perplexity(*values.mean(axis=-1)))
    pooled = float(pooled_perplexity(totals.sum(), counts.sum()))
    note = f"over {int(counts.sum())} tokens of all answers"
    figures = [Figure.within(interval, pooled_name, pooled, totals.shape[1], note)]
    # Each answer's own, over the draws in which its passage was answered.
    each = pooled_perplexity(totals, counts)  # (D, N)
    means = np.where(known, each, 0.0).sum(axis=0)[some] / known.sum(axis=0)[some]  # (N,)
    empty = int((~known).sum())
    note = f"{empty} of {each.size} answers have no token and are left out" if empty else ""
    return [*figures, Figure.within(bootstrap(means[None]), own_name, float(means.mean()), int(some.sum()), note)]


def pooled_perplexity(log_likelihoods: _Table | float, tokens: _Table | float) -> _Table:
    """exp of minus the total log-likelihood (nats) over all tokens, elementwise; NaN where there are no tokens.

    What `scoring.metrics.perplexity` is of token log-probabilities, from sums: only real tokens have been added up.
    """
    totals, counts = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    means = np.divide(-totals, counts, out=np.full(np.broadcast(totals, counts).shape, math.nan), where=counts > 0)
    perplexities: _Table = np.exp(np.minimum(means, _MAX_EXPONENT))
    return perplexities


def _tables(scores: Sequence[Score], subset: str, metrics: Sequence[str]) -> dict[str, tuple[list[str], _Table]]:
    """Ids and values (D, N) of each metric that has been measured."""
    tables = {metric: table_of(scores, subset, metric) for metric in metrics}
    return {metric: table for metric, table in tables.items() if table[0]}

"""The leakage suite's figures that are no mean: areas under the ROC curve, PrivLeak, and what is above chance."""

import math
from collections.abc import Sequence
from typing import Final

from evaluation.intervals import bootstrap, exact_where_unanimous, table_of
from evaluation.leakage.metrics import auc_with_interval, priv_leak_with_interval
from evaluation.suite import Figure, Score

__all__ = ["PRIVLEAK_METRIC", "auc_figures", "chance_figures", "priv_leak_figures"]

#: Min-K% with MUSE's share of 40 %.
PRIVLEAK_METRIC: Final = "mia_min_40"
_MEMBERSHIP_METRICS: Final = (
    "mia_loss",
    "mia_zlib",
    "mia_min_k",
    "mia_min_k_plus_plus",
    "mia_reference",
    PRIVLEAK_METRIC,
)


def auc_figures(scores: Sequence[Score]) -> list[Figure]:
    """How well each membership score tells the forget set, and the retain set, from the holdout set.

    Of the retain set nothing was unlearned: it shows what the attack can find at all.
    """
    figures = []
    for metric in _MEMBERSHIP_METRICS:
        _, holdout = table_of(scores, "holdout", metric)
        for subset in ("forget", "retain"):
            _, members = table_of(scores, subset, metric)
            if not members.size or not holdout.size:
                continue
            value, interval = auc_with_interval(members, holdout)
            count = members.shape[1] + holdout.shape[1]
            note = "against holdout; 0.5: an attacker cannot tell"
            figures.append(Figure.within(interval, f"{subset}/{metric}_auc", value, count, note))
    return figures


def priv_leak_figures(scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
    """PrivLeak by Min-40% (see `evaluation.leakage.metrics.priv_leak`); NaN without a retain model's scores."""
    (members, inside), (nonmembers, outside) = (
        table_of(scores, subset, PRIVLEAK_METRIC) for subset in ("forget", "holdout")
    )
    count = len(members) + len(nonmembers)
    if not count:
        return []
    if reference is None:
        return [Figure("priv_leak", math.nan, count, note="needs the scores of a retain model")]
    retrained = [table_of(reference, subset, PRIVLEAK_METRIC) for subset in ("forget", "holdout")]
    if [ids for ids, _ in retrained] != [members, nonmembers]:
        return [Figure("priv_leak", math.nan, count, note="the retain model was measured on other examples")]
    value, interval = priv_leak_with_interval((inside, outside), (retrained[0][1], retrained[1][1]))
    note = "per cent; 0: as if retrained, -100: not unlearned"
    if math.isnan(value):
        note = "the retain model's own AUC is 1"
    return [Figure.within(interval, "priv_leak", value, count, note)]


def chance_figures(scores: Sequence[Score], chance: float) -> list[Figure]:
    """The probes' accuracy above that of guessing."""
    figures = []
    for metric in ("probe_letters", "probe_logits"):
        _, values = table_of(scores, "forget", metric)
        if values.size:
            interval = exact_where_unanimous(values) or bootstrap(values)
            above = interval and (interval[0] - chance, interval[1] - chance)
            value, note = float(values.mean()) - chance, f"accuracy less {chance:.2f}"
            figures.append(Figure.within(above, f"forget/{metric}_above_chance", value, values.shape[1], note))
    return figures

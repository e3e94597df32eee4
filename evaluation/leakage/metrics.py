"""What an answer's tokens tell of what a model keeps: extraction, memorization and membership inference.

Pure functions over one answer's greedy flags and log-probabilities, in nats, of answer tokens alone; and over the
scores of many, the area under the ROC curve (AUC), PrivLeak, and the figures of a table that are no means.

Extraction is from one teacher-forced pass: where every token of a suffix is the likeliest after the tokens before it,
greedy decoding from those continues with exactly that suffix. Every membership score rises with how likely the answer
is a member's, so that the AUC is above 0.5 where members stand out and 0.5 where an attacker cannot tell.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import bootstrap, exact_where_unanimous, percentile_interval, resampled_shares, table_of
from evaluation.suite import Figure, Score

_SHARE_K: Final = 0.2
"""The share of least likely tokens that Min-K% looks at: k = 20 in Shi et al. 2024 (arXiv 2310.16789)."""
PRIVLEAK_K: Final = 0.4
"""The same share in MUSE's PrivLeak: `forget_holdout_Min-40%` of its public code."""

#: Min-K% with MUSE's share of 40 %.
PRIVLEAK_METRIC: Final = "mia_min_40"
_MEMBERSHIP: Final = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", PRIVLEAK_METRIC)
#: Below it a variance of log p is taken for rounding: the model is certain. OpenUnlearning's bound.
_MIN_VARIANCE: Final = 1e-6
_SEED: Final = 20260102

Floats = NDArray[np.float64]


def extraction_strength(greedy: Sequence[bool]) -> float:
    """1 - k / |y|, in [0, 1], for the fewest answer tokens k after which greedy decoding says all the others.

    Carlini et al. 2021 (arXiv 2012.07805) as a measure of unlearning by Wang et al. 2025 (arXiv 2406.09179), and as
    in OpenUnlearning (arXiv 2506.12618), but for one case: where the last token is not the greedy one, no suffix is
    extracted and the strength is 0, not the 1 / |y| of OpenUnlearning's code.

    Args:
        greedy: (A,) whether each answer token is the likeliest at its place; at least one.

    Raises:
        ValueError: no token.
    """
    _check_tokens(greedy)
    suffix = next((length for length, flag in enumerate(reversed(greedy)) if not flag), len(greedy))
    return suffix / len(greedy)


def exact_memorization(greedy: Sequence[bool]) -> float:
    """The share of answer tokens that are the likeliest at their place, in [0, 1].

    OpenUnlearning's `exact_memorization` (arXiv 2506.12618), after Tirumala et al. 2022 (arXiv 2205.10770).

    Args:
        greedy: (A,) as for `extraction_strength`.

    Raises:
        ValueError: no token.
    """
    _check_tokens(greedy)
    return sum(greedy) / len(greedy)


def _check_tokens(greedy: Sequence[bool]) -> None:
    if not greedy:
        raise ValueError("greedy: no token; score an answer that has at least one")


def likelihood(logprobs: Sequence[float]) -> float:
    """Mean log-probability of (A,): minus the loss (Yeom et al. 2018, arXiv 1709.01604)."""
    return float(np.mean(logprobs))


def zlib_ratio(logprobs: Sequence[float], answer: str) -> float:
    """Mean log-probability over the bytes that zlib makes of the answer (Carlini et al. 2021, arXiv 2012.07805).

    A text that is simple in itself is likely without having been seen.
    """
    return likelihood(logprobs) / len(zlib.compress(answer.encode()))


def min_k(logprobs: Sequence[float], share: float = _SHARE_K) -> float:
    """Min-K% Prob (Shi et al. 2024, arXiv 2310.16789): mean log-probability of the least likely tokens.

    Args:
        logprobs: (A,).
        share: of the tokens, in (0, 1]; rounded down, at least one.
    """
    return _mean_of_lowest(np.asarray(logprobs, dtype=np.float64), share)


def min_k_plus_plus(
    logprobs: Sequence[float], mean: Sequence[float], std: Sequence[float], share: float = _SHARE_K
) -> float:
    """Min-K%++ (Zhang et al. 2024, arXiv 2404.02936): Min-K% of (log p - μ) / σ.

    Args:
        logprobs: (A,).
        mean: (A,) μ, of log p over the vocabulary under p itself.
        std: (A,) σ, its standard deviation; at least 0.001 is used.
        share: as for `min_k`.
    """
    deviation = np.maximum(np.asarray(std, dtype=np.float64), math.sqrt(_MIN_VARIANCE))
    standardised = (np.asarray(logprobs, dtype=np.float64) - np.asarray(mean, dtype=np.float64)) / deviation
    return _mean_of_lowest(standardised, share)


def _mean_of_lowest(values: Floats, share: float) -> float:
    count = max(1, int(len(values) * share))
    return float(np.partition(values, count - 1)[:count].mean())


def auc(members: Floats, nonmembers: Floats) -> float:
    """Probability that a member's score is above a non-member's, ties as a half: the area under the ROC curve.

    Args:
        members: (N,) scores.
        nonmembers: (M,).

    Returns:
        In [0, 1]; NaN where either set is empty.
    """
    return float(_wins(members, nonmembers).mean()) if len(members) and len(nonmembers) else math.nan


def auc_with_interval(members: Floats, nonmembers: Floats) -> tuple[float, tuple[float, float] | None]:
    """The mean AUC of D noise draws, and its 95 % interval.

    A percentile bootstrap over the members, the non-members and, where there are several, the draws.

    Args:
        members: (D, N) scores.
        nonmembers: (D, M).

    Returns:
        The AUC, NaN where a set is empty; the interval, None where a set has fewer than two.
    """
    value = float(np.mean([auc(*draw) for draw in zip(members, nonmembers, strict=True)]))
    if min(members.shape[1], nonmembers.shape[1]) < 2:
        return value, None
    return value, percentile_interval(_resampled_aucs((members, nonmembers))[0])


def priv_leak(unlearned: float, retrained: float) -> float:
    """MUSE's PrivLeak in per cent (arXiv 2407.06460, section 3): how far an AUC is from that of a retrained model.

    MUSE counts the other way round, as its code takes the forget set for the non-members: of the AUC here it uses
    1 - AUC. So 0 is a model that looks retrained, -100 one on which the attack never fails (not unlearned), and more
    than 0 one that finds the forget set less likely than unseen text (unlearned too far).

    Args:
        unlearned: AUC of forget set against holdout, as `auc` gives it.
        retrained: the same of a model trained without the forget set.

    Returns:
        ((1 - unlearned) - (1 - retrained)) / (1 - retrained) · 100; NaN where `retrained` is 1.
    """
    return (retrained - unlearned) / (1.0 - retrained) * 100.0 if retrained < 1.0 else math.nan


def priv_leak_with_interval(
    unlearned: tuple[Floats, Floats], retrained: tuple[Floats, Floats]
) -> tuple[float, tuple[float, float] | None]:
    """`priv_leak` and its 95 % interval, for other examples of the kind: both models are resampled together.

    Args:
        unlearned: (D, N) scores of the members and (D, M) of the non-members.
        retrained: the same of the retrained model, (E, N) and (E, M), for the same examples in the same order.

    Returns:
        The value, NaN as in `priv_leak`; the interval, None where there is none.
    """
    value = priv_leak(*(auc_with_interval(*scores)[0] for scores in (unlearned, retrained)))
    if min(scores.shape[1] for scores in unlearned) < 2 or not math.isfinite(value):
        return value, None
    pairs = zip(*_resampled_aucs(unlearned, retrained), strict=True)
    return value, percentile_interval(np.array([priv_leak(*pair) for pair in pairs]))


def _wins(members: Floats, nonmembers: Floats) -> Floats:
    """(N, M) 1 where the member's score is above, 0.5 where equal, 0 where below."""
    difference = np.sign(members[:, None] - nonmembers[None, :])
    return np.asarray((difference + 1.0) / 2.0)


def _resampled_aucs(*models: tuple[Floats, Floats]) -> list[Floats]:
    """(R,) AUC of each model, a mean over its resampled draws; the same resampled sets (D, N) and (D, M) for all."""
    generator = np.random.default_rng(_SEED)
    rows, columns = (resampled_shares(generator, scores.shape[1]) for scores in models[0])  # (R, N) and (R, M)
    aucs = []
    for members, nonmembers in models:
        pairs = zip(members, nonmembers, strict=True)
        by_draw = np.stack([((rows @ _wins(*draw)) * columns).sum(axis=1) for draw in pairs], axis=1)  # (R, D)
        draws = by_draw.shape[1]
        aucs.append((by_draw * (resampled_shares(generator, draws) if draws > 1 else 1.0)).sum(axis=1))
    return aucs


def auc_figures(scores: Sequence[Score]) -> list[Figure]:
    """How well each membership score tells the forget set, and the retain set, from the holdout set.

    Of the retain set nothing was unlearned: it shows what the attack can find at all.
    """
    figures = []
    for metric in _MEMBERSHIP:
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
    """PrivLeak by Min-40% (see `priv_leak`); NaN without a retain model's scores."""
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

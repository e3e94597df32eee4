"""TOFU's figures (Maini et al. 2024, arXiv 2401.06121) as its official code computes them: pure functions of numbers.

The official code is the repository locuslab/tofu, its aggregation `aggregate_eval_stat.py`. Published figures come from
there, so where it differs from the paper the code is the default here:

- Truth ratio. Equation 1 of the paper takes the arithmetic mean of the wrong answers' probabilities; the aggregation
  the geometric one (the mean of their losses), and works with 1/R. `mean="arithmetic"` gives the paper's.
- Probability on real authors and world facts. Each answer's probability is P(a|q)^(1/|a|), normalised over the right
  answer and the wrong ones. The paper (section 2.2) writes it without the exponent.
- On the forget set the aggregated truth ratio is min(R, 1/R), on the other three max(0, 1 - R).

ECO's public code (llm-unlearn-eco) tests min(R, 1/R) for forget quality, where two models that err in opposite
directions look alike; TOFU tests R itself. It computes no model utility.

Log-probabilities are in nats, and a *mean* log-probability is that of one answer's tokens.

The figures are from per-example scores, whether a suite measured them or an official log holds them. Means of each
(subset, metric) are `evaluation.intervals.mean_figures`; they are the official aggregation's columns: `Prob. Retain` is
retain/probability, `ROUGE Retain` retain/rouge_l, `Truth Ratio Retain` retain/truth_score. With several noise draws
each draw is another guarded model: forget quality is tested for each draw and the median is given. Ratios averaged over
draws would be less spread than any one model's, and the test would see that.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import DataError
from evaluation.intervals import percentile_interval, resampled_shares, table_of
from evaluation.suite import Figure, Score
from scoring.forget_quality import forget_quality, log_truth_ratio
from scoring.metrics import preference_for_truth
from scoring.metrics import truth_ratio as arithmetic_truth_ratio

Subset = Literal["forget", "retain", "real_authors", "world_facts"]
SUBSETS: Final[tuple[Subset, ...]] = get_args(Subset)
FORGET: Final = "forget"

Mean = Literal["geometric", "arithmetic"]
"""Of the wrong answers' probabilities in the truth ratio; geometric: the official code, arithmetic: the paper."""

_AVERAGED: Final = ("probability", "rouge_l", "truth_score")
_UTILITY_SUBSETS: Final[tuple[Subset, ...]] = ("retain", "real_authors", "world_facts")
#: The nine numbers whose harmonic mean is the model utility (section 2.2).
UTILITY_COMPONENTS: Final = tuple((subset, metric) for subset in _UTILITY_SUBSETS for metric in _AVERAGED)

HEADLINE: Final = (
    "forget_quality",
    "model_utility",
    "retain_utility",
    *(f"{subset}/{metric}" for subset in ("forget", "retain") for metric in _AVERAGED),
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
    **{f"{subset}/{metric}": "up" for subset, metric in UTILITY_COMPONENTS},
    **{f"{subset}/truth_ratio": "down" for subset in _UTILITY_SUBSETS},
}

_SEED: Final = 20260102
QUALITY_NAMES: Final = ("forget_quality", "forget_quality_log10", "forget_ks_statistic")

#: Subsets whose probability is normalised over the right and the wrong answers.
_NORMALISED: Final = frozenset({"real_authors", "world_facts"})
#: exp of more is infinite.
_MAX_EXPONENT: Final = 700.0


def truth_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric") -> float:
    """The truth ratio R of one question (equation 1), 0 or more; near 0 the model knows, near 1 it cannot tell.

    Args:
        paraphrased: mean log-probability of the paraphrased right answer.
        perturbed: those of the wrong answers, at least one.
        mean: see `Mean`. By geometric mean R is what the official `evaluate_util.py` logs as `truth_ratio`.
    """
    if mean == "arithmetic":
        return arithmetic_truth_ratio([paraphrased], [[one] for one in perturbed])
    return math.exp(min(log_truth_ratio(paraphrased, perturbed), _MAX_EXPONENT))


def indifference(ratio: float) -> float:
    """min(R, 1/R), in [0, 1]: how the official code aggregates the truth ratio of the forget set. 1: cannot tell."""
    return ratio if ratio <= 1 else 1 / ratio


def normalised_probability(answer: float, perturbed: Sequence[float]) -> float:
    """The right answer's share of the probability of all options, in [0, 1].

    Args:
        answer: mean log-probability of the right answer.
        perturbed: those of the wrong answers.
    """
    return float(1.0 / (1.0 + np.exp(np.minimum(np.array(perturbed) - answer, _MAX_EXPONENT)).sum()))


def example_metrics(
    subset: str, answer: float, paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric"
) -> dict[str, float]:
    """`probability`, `truth_ratio` (R itself) and `truth_score` (R as it is aggregated on this subset) of one question.

    Args:
        subset: one of `SUBSETS`.
        answer: mean log-probability of the answer.
        paraphrased: that of the paraphrased answer; on real authors and world facts of the answer itself.
        perturbed: those of the wrong answers, at least one.
    """
    ratio = truth_ratio(paraphrased, perturbed, mean)
    normalised = subset in _NORMALISED
    return {
        "probability": normalised_probability(answer, perturbed) if normalised else math.exp(answer),
        "truth_ratio": ratio,
        "truth_score": indifference(ratio) if subset == FORGET else preference_for_truth(ratio),
    }


def harmonic_mean(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the last axis (..., K) -> (...): model utility of the nine means (section 2.2); 0 where one of them is 0."""
    if np.any(components < 0):
        raise ValueError("a harmonic mean is of numbers that are 0 or more")
    with np.errstate(divide="ignore"):
        means: NDArray[np.float64] = components.shape[-1] / np.sum(1.0 / components, axis=-1)
    return means


def tofu_figures(scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
    """`model_utility`, `retain_utility`, `forget_quality` (the p-value) with its logarithm, `forget_ks_statistic`.

    Retain utility is not TOFU's: model utility of the retain set's three means alone, for models that know nothing of
    real authors and the world, whose model utility is 0 whatever they forget.

    Raises:
        DataError: the reference is of other questions of the forget set.
    """
    of_retain = [component for component in UTILITY_COMPONENTS if component[0] == "retain"]
    utilities = [model_utility_figure(scores), model_utility_figure(scores, of_retain, "retain_utility")]
    return [*utilities, *forget_quality_figures(scores, reference)]


def model_utility_figure(
    scores: Sequence[Score], components: Sequence[tuple[Subset, str]] = UTILITY_COMPONENTS, name: str = "model_utility"
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
        weights = {subset: resampled_shares(generator, size) for subset, size in sizes.items()}
        of_draws = resampled_shares(generator, len(next(iter(tables.values()))))
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

"""Figures of a sequence of requests: each set after each addition, the two scores of DRAGON, and what was lost again.

DRAGON (Wang et al. 2025, arXiv 2511.05784) calls T requests in a row continual unlearning and gives two scores of it.
Read were its section 3.2 (equations 1 and 2, beta 0.5), section 6.1 and appendix C.2.1, in a copy of the paper's text;
its code is not public. The functions here give the figures of its table 3 from those of its table 2.

- Deviation score of a step (Shen et al. 2025, arXiv 2502.07218, as DRAGON has it): the Euclidean distance of the
  ROUGE-L of what was to be forgotten so far, and that of what stays, from (0, 1). DRAGON prints it times 100, and
  takes the share for the DDS.
- Dynamic deviation score, DDS: its mean over the steps, and half of its mean rise from one step to the next.
- Dynamic utility score, DUS: one less the mean change of the utility from one step to the next.

Two things differ. Which ROUGE-L is meant the paper does not say: here it is TOFU's, the recall. Its utility is TOFU's
of nine figures; here it is the harmonic mean of the two that a retain file has, probability and ROUGE-L, or the latter
alone.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import by_question, mean_figures
from evaluation.successive.latency import TIMED
from evaluation.suite import Figure, Score
from evaluation.tofu.metrics import harmonic_mean

BETA: Final = 0.5
"""Weight of the rises in the DDS (section 3.2)."""
ROUGE, PROBABILITY = "rouge_l", "probability"
FORGET, WAITING, RETAIN, LATENCY = "forget", "waiting", "retain", "latency"
"""Subsets: what was to be forgotten so far, what will be asked for later, what stays; and what was timed."""

_AFTER: Final = "after_"
_Cells = Mapping[tuple[str, str, int, int], Sequence[Score]]
"""Scores by subset, metric, step and request (0 where a subset is of none)."""


def after(step: int) -> str:
    """The group of a step: "after_3"; "after_0" is the model as it was."""
    return f"{_AFTER}{step}"


def deviation_score(forget_rouge: float, retain_rouge: float) -> float:
    """Distance from (0, 1), in [0, sqrt(2)]; 0: all of it forgotten, and all else known."""
    return math.hypot(forget_rouge, 1 - retain_rouge)


def dynamic_deviation_score(deviations: Sequence[float], beta: float = BETA) -> float:
    """DDS of the deviation scores of T steps; less is better.

    Raises:
        ValueError: fewer than two steps.
    """
    rises = np.maximum(0.0, _changes(deviations))
    return float(np.mean(deviations) + beta * rises.mean())


def dynamic_utility_score(utilities: Sequence[float]) -> float:
    """DUS of the utilities of T steps, at most 1; more is better. 1: they never change, however low they are.

    Raises:
        ValueError: fewer than two steps.
    """
    return float(1.0 - np.abs(_changes(utilities)).mean())


def _changes(values: Sequence[float]) -> NDArray[np.float64]:
    if len(values) < 2:
        raise ValueError("one step changes nothing; give two or more")
    return np.diff(np.asarray(values, dtype=np.float64))


def sequence_figures(scores: Sequence[Score], steps: int, metrics: Sequence[str]) -> list[Figure]:
    """All figures of T steps (see the module), from scores whose examples are named `request/example/group`."""
    cells = _by_cell(scores)
    figures = _summary(cells, steps, metrics)
    for metric in metrics:
        for subset in (FORGET, WAITING, RETAIN):
            figures += [found for step in range(steps + 1) if (found := _mean(cells, subset, metric, step))]
        for request in range(1, steps + 1):
            of_one = (_mean(cells, FORGET, metric, step, request) for step in range(request, steps + 1))
            figures += [found for found in of_one if found]
    for timed in TIMED:
        figures += [found for step in range(steps + 1) if (found := _mean(cells, LATENCY, timed, step))]
    # In place of the plain means: a run takes an example's steps for examples of their own.
    for subset, metric in dict.fromkeys((score.subset, score.metric) for score in scores):
        mine = [score for score in scores if (score.subset, score.metric) == (subset, metric)]
        figures.append(replace(by_question(f"{subset}/{metric}", mine), note="mean over the steps, by question"))
    return figures


def _by_cell(scores: Sequence[Score]) -> _Cells:
    cells: defaultdict[tuple[str, str, int, int], list[Score]] = defaultdict(list)
    for score in scores:
        step, request = int(score.group.removeprefix(_AFTER)), int(score.example.partition("/")[0])
        cells[score.subset, score.metric, step, request].append(score)
    return cells


def _mean(cells: _Cells, subset: str, metric: str, step: int, request: int | None = None) -> Figure | None:
    """Of a subset after a step, or of one request in it, with its interval; None where it has no examples."""
    mine = [
        score
        for key, found in cells.items()
        if key[:3] == (subset, metric, step) and request in (None, key[3])
        for score in found
    ]
    if not mine:
        return None
    (figure,) = mean_figures(mine, TIMED)
    of = subset if request is None else f"request_{request}"
    return replace(figure, name=f"{of}/{metric}/{after(step)}")


def _summary(cells: _Cells, steps: int, metrics: Sequence[str]) -> list[Figure]:
    """DDS and DUS, and what came back or was lost, without intervals: resampling would make rises of its own."""

    def mean(subset: str, metric: str, step: int, request: int | None = None) -> float:
        values = [
            score.value
            for key, found in cells.items()
            if key[:3] == (subset, metric, step) and request in (None, key[3])
            for score in found
        ]
        return float(np.mean(values))

    every = range(1, steps + 1)
    utilities = [
        float(harmonic_mean(np.array([mean(RETAIN, metric, step) for metric in metrics]))) for step in (0, *every)
    ]
    deviations = [deviation_score(mean(FORGET, ROUGE, step), mean(RETAIN, ROUGE, step)) for step in every]
    came_back = [
        mean(FORGET, ROUGE, step, request) - mean(FORGET, ROUGE, request, request)
        for request in every
        for step in range(request + 1, steps + 1)
    ]
    lost = [utilities[0] - utility for utility in utilities[1:]]
    count = len({score.example.rpartition("/")[0] for found in cells.values() for score in found})
    utility = f"utility: {' and '.join(metrics)} of the retain set" + (", their harmonic mean" * (len(metrics) > 1))
    values = {
        "dds": (dynamic_deviation_score(deviations), f"of ROUGE-L recall, beta {BETA:g}"),
        "dus": (dynamic_utility_score(utilities[1:]), utility),
        "came_back/worst": (max(came_back), "of ROUGE-L, of one request since its own step"),
        "came_back/mean": (float(np.mean(came_back)), "of ROUGE-L, over requests and later steps"),
        "utility_lost/worst": (max(lost), f"since before the first request; {utility}"),
        "utility_lost/mean": (float(np.mean(lost)), f"since before the first request; {utility}"),
    }
    per_step = [Figure(f"deviation/{after(step)}", one, count) for step, one in zip(every, deviations, strict=True)]
    per_step += [Figure(f"utility/{after(step)}", one, count) for step, one in enumerate(utilities)]
    return [Figure(name, value, count, note=note) for name, (value, note) in values.items()] + per_step

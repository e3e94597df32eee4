"""What forget quality a corruption has that was searched for it: TOFU's test under noise that the search has not seen.

A search chooses the strength that suits its own noise draws; a server's secret makes another one. So each unseen draw
is tested for itself, as a guarded model of its own, and what is told is the range.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from corruption import RANDOM_METHODS, CorruptionSpec
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import Retained
from scoring.forget_quality import forget_quality
from scoring.scorer import Scorer

#: Noise draws of the test.
UNSEEN_DRAWS: Final = 3


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """Prompt and answers corrupted as one prompt, all answers given.

    Attributes:
        examples: questions, of the model and of the reference alike.
        reference: where the reference's truth ratios come from: "retain model" or "surrogate".
        noise_seeds: one for each draw.
        p_values: of each draw, by the two-sample Kolmogorov-Smirnov test (TOFU, section 2.2).
        statistics: of each draw, the largest distance between the two distribution functions.
        median_truth_ratios: of each draw.
        reference_median_truth_ratio: of the reference.
    """

    examples: int
    reference: str
    noise_seeds: tuple[int, ...]
    p_values: tuple[float, ...]
    statistics: tuple[float, ...]
    median_truth_ratios: tuple[float, ...]
    reference_median_truth_ratio: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        median, low, high = _range(self.p_values)
        ratio, least, most = _range(self.median_truth_ratios)
        draws = len(self.p_values)
        p_range = f"({low:.2g} to {high:.2g} over {draws} draws of unseen noise)" if draws > 1 else "(without noise)"
        what = f"forget quality against the {self.reference}"
        if self.reference != "retain model":
            what = f"TOFU's test against the {self.reference}, a guess and no retain model"
        return (
            f"{what}, {self.examples} questions: p = {median:.2g} {p_range}; "
            f"median truth ratio {ratio:.3f} ({least:.3f} to {most:.3f}), of the {self.reference} "
            f"{self.reference_median_truth_ratio:.3f}"
        )


def measure_forget_quality(
    scorer: Scorer, task: MetricTask, spec: CorruptionSpec, retained: Retained, first_seed: int
) -> ForgetQuality:
    """Test a corruption against what a model that never learned scores, both on the examples of the task.

    Args:
        task: of the metric forget_quality.
        first_seed: of the noise draws, which are numbered on from it; a method without noise has one draw.
    """
    seeds = tuple(range(first_seed, first_seed + (UNSEEN_DRAWS if spec.method in RANDOM_METHODS else 1)))
    draws = [scores.values for scores in task.scores(scorer, [(spec, seed) for seed in seeds])]
    tests = [forget_quality(draw, retained.values) for draw in draws]
    return ForgetQuality(
        examples=len(task.examples),
        reference=str(retained.origin["source"]),
        noise_seeds=seeds,
        p_values=tuple(test.p_value for test in tests),
        statistics=tuple(test.statistic for test in tests),
        median_truth_ratios=tuple(float(np.exp(np.median(draw))) for draw in draws),
        reference_median_truth_ratio=float(np.exp(np.median(retained.values))),
    )


def _range(numbers: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, most."""
    return float(np.median(numbers)), min(numbers), max(numbers)

"""What a policy does to the answers: the forget set and the retain set as a guarded server would answer them.

The classifier's own verdicts decide which prompts are corrupted, so a miss shows as remembered and a false positive as
utility lost. The noise is none that the search has seen, for which the strength was chosen. A server's secret draws
yet other noise, the same for a token in all prompts, so that all answers are better or worse together.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers import Example
from classifiers.prompt_classifier import PromptClassifier
from corruption import CorruptionSpec
from optimizer.objective.metric_task import MetricTask
from scoring.metrics import Metric, MetricError, choice_prompt
from scoring.scorer import Scorer

__all__ = ["EFFECT_DRAWS", "Effect", "half_width", "measure_effect"]

#: 97.5 % quantile of the normal distribution: half the width of a 95 % interval in standard errors.
_NORMAL = 1.96
#: Noise draws, and the same quantile of Student's distribution with one degree of freedom less.
EFFECT_DRAWS = 5
_STUDENT = 2.776


@dataclass(frozen=True, slots=True)
class Effect:
    """One set's answers without and with the policy; each a mean over examples in [0, 1]."""

    metric: Metric
    examples: int
    flagged: int
    unguarded: float
    guarded: float
    guarded_interval: tuple[float, float]
    """95 %, for other examples of the kind and another noise draw, such as a server's."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"guarded_interval": list(self.guarded_interval)}


def measure_effect(
    scorer: Scorer,
    classifier: PromptClassifier,
    spec: CorruptionSpec,
    examples: Sequence[Example],
    *,
    noise_seed: int,
    count: int,
    seed: int,
) -> Effect | None:
    """Answer `count` examples drawn with `seed`; ROUGE-L recall, or choice accuracy where all have choices.

    None where no example has an answer to compare with.
    """
    metric: Metric = "choice_accuracy" if all(example.choices for example in examples) else "rouge_l"
    try:
        usable = MetricTask(metric, examples).examples
    except MetricError:
        return None
    picked = sorted(np.random.default_rng(seed).permutation(len(usable))[:count].tolist())
    task = MetricTask(metric, [usable[i] for i in picked])
    clean = task.scores(scorer, [(None, 0)])[0].values  # (N,)
    flagged = classifier.scores([_asked(example) for example in task.examples]) >= classifier.threshold
    draws = _guarded(scorer, task, spec, flagged, clean, noise_seed)  # (K, N)
    mean = float(draws.mean())
    half = half_width(draws)
    return Effect(
        metric=metric,
        examples=len(clean),
        flagged=int(flagged.sum()),
        unguarded=float(clean.mean()),
        guarded=mean,
        guarded_interval=(max(mean - half, 0.0), min(mean + half, 1.0)),
    )


def half_width(draws: NDArray[np.float64]) -> float:
    """Half the 95 % interval of the mean over other examples under another draw, from (EFFECT_DRAWS, N) values.

    Normal over examples, and Student's over the few draws: a prediction of one more draw, not of their mean.
    """
    examples = draws.shape[1]
    of_examples = float(draws.mean(axis=0).std(ddof=1)) / examples**0.5 if examples > 1 else 0.0
    of_a_draw = float(draws.mean(axis=1).std(ddof=1)) * (1 + 1 / EFFECT_DRAWS) ** 0.5
    return math.hypot(_NORMAL * of_examples, _STUDENT * of_a_draw)


def _asked(example: Example) -> str:
    return choice_prompt(example.prompt, example.choices) if example.choices else example.prompt


def _guarded(
    scorer: Scorer,
    task: MetricTask,
    spec: CorruptionSpec,
    flagged: NDArray[np.bool_],
    clean: NDArray[np.float64],
    noise_seed: int,
) -> NDArray[np.float64]:
    """(K, N): under each noise draw where a prompt is flagged, the uncorrupted value elsewhere."""
    guarded = np.tile(clean, (EFFECT_DRAWS, 1))
    if flagged.any():
        hidden = MetricTask(
            task.metric,
            [example for example, hit in zip(task.examples, flagged, strict=True) if hit],
            max_new_tokens=task.max_new_tokens,
        )
        draws = hidden.scores(scorer, [(spec, seed) for seed in range(noise_seed, noise_seed + EFFECT_DRAWS)])
        guarded[:, flagged] = [draw.values for draw in draws]
    return guarded

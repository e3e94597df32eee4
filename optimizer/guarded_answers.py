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

#: 97.5 % quantile of the normal distribution: half the width of a 95 % interval in standard errors.
_NORMAL = 1.96
#: Noise draws, and the same quantile of Student's distribution with one degree of freedom less.
NOISE_DRAWS = 5
_STUDENT = 2.776


@dataclass(frozen=True, slots=True)
class GuardedAnswers:
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

    def __str__(self) -> str:
        return (
            f"{self.unguarded:.3f} unguarded, {self.guarded:.3f} guarded "
            f"({self.flagged} of {self.examples} prompts flagged)"
        )


def measure_guarded_answers(
    scorer: Scorer,
    classifier: PromptClassifier,
    spec: CorruptionSpec,
    examples: Sequence[Example],
    *,
    noise_seed: int,
    count: int,
    seed: int,
) -> GuardedAnswers | None:
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
    prompts = [choice_prompt(e.prompt, e.choices) if e.choices else e.prompt for e in task.examples]
    flagged = classifier.scores(prompts) >= classifier.threshold  # (N,)
    draws = np.tile(clean, (NOISE_DRAWS, 1))  # (K, N): of a flagged prompt one value for each noise draw
    if flagged.any():
        hidden = MetricTask(metric, [e for e, hit in zip(task.examples, flagged, strict=True) if hit])
        conditions = [(spec, noise) for noise in range(noise_seed, noise_seed + NOISE_DRAWS)]
        draws[:, flagged] = [scores.values for scores in hidden.scores(scorer, conditions)]
    mean, half = float(draws.mean()), half_width(draws)
    interval = max(mean - half, 0.0), min(mean + half, 1.0)
    return GuardedAnswers(metric, len(clean), int(flagged.sum()), float(clean.mean()), mean, interval)


def half_width(draws: NDArray[np.float64]) -> float:
    """Half the 95 % interval of the mean over other examples under another draw, from (NOISE_DRAWS, N) values.

    Normal over examples, and Student's over the few draws: a prediction of one more draw, not of their mean.
    """
    examples = draws.shape[1]
    of_examples = float(draws.mean(axis=0).std(ddof=1)) / examples**0.5 if examples > 1 else 0.0
    of_a_draw = float(draws.mean(axis=1).std(ddof=1)) * (1 + 1 / NOISE_DRAWS) ** 0.5
    return math.hypot(_NORMAL * of_examples, _STUDENT * of_a_draw)

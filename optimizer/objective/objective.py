"""What the corruption search minimises: how far a corrupted model is from one that never learned the forget set.

The value is a metric (`scoring.metrics`) of the corrupted model, its mean over examples and noise seeds; the
retained value is the same metric of a model that never learned. ECO (arXiv 2406.07933, section 3.3) minimises the
distance between the two (`optimizer.objective.distance`); its public code minimises the metric itself, which makes
gibberish the best answer.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from corruption import RANDOM_METHODS, CorruptionSpec
from optimizer.objective.distance import distance_from, retained_value
from optimizer.objective.metric_task import MetricTask, Scores
from optimizer.search.space import Measurement
from scoring.metrics import MetricError, perplexity, repetition
from scoring.scorer import Request, Scorer
from storage.digests import sha256_of_json

#: What generated answers are scored after when their form is judged: a question that has nothing to do with them.
_NEUTRAL_PROMPT: Final = "Write one sentence."


@dataclass(frozen=True, slots=True)
class Retained:
    """What a model that never learned scores, and how that is known.

    Attributes:
        values: (N,), one for each example of the task.
        origin: JSON values that say where they come from (`source`: "retain model", "surrogate" or "chance") and
            identify it.
    """

    values: NDArray[np.float64]
    origin: Mapping[str, object]


def retained_from_model(scorer: Scorer, task: MetricTask) -> Retained:
    """The scores of a model that was trained without the forget set."""
    return Retained(task.scores(scorer, [(None, 0)])[0].values, {"source": "retain model", **scorer.describe()})


class ForgetObjective:
    """The `Objective` of a search (see `optimizer.search.space`) over one scorer.

    Args:
        scorer: the model to make forget.
        task: the metric and the examples to forget.
        retained: the task's values for a model that never learned.
        gibberish: whether the form of generated answers is measured too: one more forward pass over them. It is
            the sum of two excesses over the uncorrupted model's answers, each at least 0: of the mean negative
            log-probability of a token under the uncorrupted model (nats; the log of the perplexity), and of the
            share of repeated 4-grams. 0 for metrics that generate nothing.

    Raises:
        MetricError: the retained values are not the task's.
    """

    def __init__(self, scorer: Scorer, task: MetricTask, retained: Retained, *, gibberish: bool = True) -> None:
        if retained.values.shape != (len(task.examples),):
            raise MetricError(f"retained: {retained.values.size} values for {len(task.examples)} examples")
        self._scorer = scorer
        self._task = task
        self.retained = retained
        self._judges_form = gibberish and task.generates
        self._whole: tuple[ForgetObjective, list[int]] | None = None
        self._clean: Scores | None = None
        self._clean_form: tuple[float, float] | None = None

    @property
    def retained_value(self) -> float:
        return retained_value(self._task.metric, self.retained.values)

    @property
    def uncorrupted_value(self) -> float:
        """The metric of the model as it is."""
        clean = self.uncorrupted().values[np.newaxis]  # (1, N)
        return float(distance_from(self._task.metric, self.retained.values, clean).values.mean())

    def uncorrupted(self) -> Scores:
        """The scores of the model as it is; measured once."""
        if self._clean is None and self._whole is not None:
            whole, picked = self._whole
            clean = whole.uncorrupted()
            answers = tuple(clean.answers[i] for i in picked) if clean.answers else ()
            self._clean = Scores(clean.values[picked], answers)
        if self._clean is None:
            self._clean = self._task.scores(self._scorer, [(None, 0)])[0]
        return self._clean

    def part(self, size: int, seed: int) -> Self | None:
        """See `Objective.part`. Drawn evenly over the range of the examples' retained values (systematic sampling), so
        that the part has its share of what is hard and easy to guess. None for more than half of the examples."""
        count = len(self._task.examples)
        if 2 * size > count:
            return None
        offset = np.random.default_rng(seed).random()
        order = np.argsort(self.retained.values, kind="stable")
        picked = sorted(order[np.floor((np.arange(size) + offset) * count / size).astype(np.int64)].tolist())
        limit = self._task.answer_limit(self._scorer) if self._task.generates else None
        task = MetricTask(self._task.metric, [self._task.examples[i] for i in picked], max_new_tokens=limit)
        values = Retained(self.retained.values[picked], self.retained.origin)
        part = type(self)(self._scorer, task, values, gibberish=self._judges_form)
        part._whole = self, picked
        return part

    def measure(self, specs: Sequence[CorruptionSpec], noise_seeds: Sequence[int]) -> list[Measurement]:
        """See `Objective.measure`. A method without noise is measured once, whatever the seeds.

        Raises:
            MetricError: no noise seeds.
        """
        if not noise_seeds:
            raise MetricError("noise_seeds: none given; give at least one")
        started, passes = time.perf_counter(), self._scorer.forward_passes
        seeds = [tuple(noise_seeds) if spec.method in RANDOM_METHODS else (0,) for spec in specs]
        conditions = [(spec, seed) for spec, mine in zip(specs, seeds, strict=True) for seed in mine]
        measured = iter(self._task.scores(self._scorer, conditions))
        groups = [[next(measured) for _ in mine] for mine in seeds]
        gibberish = [0.0] * len(groups)
        if self._judges_form:
            if self._clean_form is None:
                (self._clean_form,) = self._forms([self.uncorrupted().answers])
            surprise, repeated = self._clean_form
            forms = self._forms([[answer for one in group for answer in one.answers] for group in groups])
            gibberish = [max(s - surprise, 0.0) + max(r - repeated, 0.0) for s, r in forms]
        seconds = (time.perf_counter() - started) / max(len(specs), 1)
        spent = self._scorer.forward_passes - passes
        shares = [spent // len(specs) + (i < spent % len(specs)) for i in range(len(specs))]
        measurements = []
        for group, form, share in zip(groups, gibberish, shares, strict=True):
            scores = np.stack([one.values for one in group])  # (S, N) for S seeds
            found = distance_from(self._task.metric, self.retained.values, scores)
            value, count = float(found.values.mean()), len(found.values)
            gap = value - self.retained_value
            error = float(found.values.std(ddof=1) / count**0.5) if count > 1 else 0.0
            numbers = value, found.distance, gap, error, form, share, seconds
            measurements.append(Measurement(*numbers, two_sided=found.two_sided))
        return measurements

    def _forms(self, groups: Sequence[Sequence[tuple[int, ...]]]) -> list[tuple[float, float]]:
        """For each group of answers, the log of their perplexity under the uncorrupted model, and their repetition.

        They are scored after a question that has nothing to do with them: after their own, a model that knows it by
        heart finds every other answer impossible, however well formed.
        """
        prompt_ids = self._scorer.pair(_NEUTRAL_PROMPT, "x").prompt_ids
        distinct = sorted({answer for group in groups for answer in group if answer})
        scored = self._scorer.answer_logprobs([Request(prompt_ids, answer) for answer in distinct])
        logprobs = dict(zip(distinct, scored, strict=True))
        forms = []
        for group in groups:
            written = [logprobs[answer] for answer in group if answer]
            forms.append((math.log(perplexity(written)) if written else 0.0, repetition(group)))
        return forms

    def describe(self) -> Mapping[str, object]:
        examples = [
            [e.prompt, e.answer, e.choices, e.answer_index, e.paraphrased_answer, e.perturbed_answers]
            for e in self._task.examples
        ]
        return {
            "metric": self._task.metric,
            "examples": len(self._task.examples),
            "examples_sha256": sha256_of_json(examples),
            "max_new_tokens": self._task.max_new_tokens,
            "gibberish": self._judges_form,
            "retained": dict(self.retained.origin),
            "scorer": dict(self._scorer.describe()),
        }

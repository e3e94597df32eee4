"""A metric measured on examples: which requests it takes, and what their answers are worth.

Every condition (a corruption and its noise seed) and every example of a call goes to the scorer at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from classifiers import Example
from corruption import CorruptionSpec
from scoring.forget_quality import log_truth_ratio
from scoring.metrics import (
    CHOICE_LETTERS,
    Metric,
    MetricError,
    answer_probability,
    check_metric,
    choice_prompt,
    choose,
    preference_for_truth,
    rouge_l_recall,
    truth_ratio,
)
from scoring.scorer import Request, Scorer

#: Generated answers are cut at the longest reference, and never later than TOFU cuts them.
_MAX_NEW_TOKENS: Final = 200

Condition = tuple[CorruptionSpec | None, int]
"""A corruption, or None, and its noise seed."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One model under one condition.

    Attributes:
        values: (N,), the metric of each example; of forget quality the logarithms of the truth ratios.
        answers: the generated ids of each example; none where the metric generates nothing.
    """

    values: NDArray[np.float64]
    answers: tuple[tuple[int, ...], ...] = ()


class MetricTask:
    """A metric on N examples, for any scorer and under any corruption.

    Args:
        metric: its name.
        examples: those that `check_metric` lets through are used, in order.
        max_new_tokens: where answers are generated; None: as many as the longest reference has, at most 200.

    Raises:
        MetricError: no such metric, or no example that it could be measured on.
    """

    def __init__(self, metric: Metric, examples: Sequence[Example], *, max_new_tokens: int | None = None) -> None:
        if max_new_tokens is not None and max_new_tokens < 1:
            raise MetricError(f"max_new_tokens: {max_new_tokens} is less than 1")
        self.metric = metric
        self.examples = check_metric(metric, examples)
        self.max_new_tokens = max_new_tokens

    @property
    def of_truth_ratios(self) -> bool:
        return self.metric in ("truth_ratio", "forget_quality")

    @property
    def generates(self) -> bool:
        return self.metric == "rouge_l"

    def answer_limit(self, scorer: Scorer) -> int:
        """Tokens at which a generated answer is cut."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        longest = max(len(scorer.pair(example.prompt, str(example.answer)).answer_ids) for example in self.examples)
        return min(_MAX_NEW_TOKENS, longest)

    def scores(self, scorer: Scorer, conditions: Sequence[Condition]) -> list[Scores]:
        """The scores under each condition, all from one call of the scorer."""
        return (self._generated if self.generates else self._scored)(scorer, conditions)

    def _generated(self, scorer: Scorer, conditions: Sequence[Condition]) -> list[Scores]:
        pairs = [scorer.pair(example.prompt, str(example.answer)) for example in self.examples]
        requests = [Request(pair.prompt_ids, (), spec, seed) for spec, seed in conditions for pair in pairs]
        answers = scorer.generate(requests, self.answer_limit(scorer))
        found = []
        for start in range(0, len(answers), len(pairs)):
            mine = tuple(answers[start : start + len(pairs)])
            recalls = [
                rouge_l_recall(str(example.answer), scorer.decode(answer))
                for example, answer in zip(self.examples, mine, strict=True)
            ]
            found.append(Scores(np.array(recalls), mine))
        return found

    def _scored(self, scorer: Scorer, conditions: Sequence[Condition]) -> list[Scores]:
        options = [[scorer.pair(*asked) for asked in self._options(example)] for example in self.examples]
        whole = self.metric == "forget_quality"  # as a gateway's client would see it who has these answers scored
        requests = [
            Request(pair.prompt_ids, pair.answer_ids, spec, seed, answer_in_prompt=whole)
            for spec, seed in conditions
            for pairs in options
            for pair in pairs
        ]
        logprobs = iter(scorer.answer_logprobs(requests))
        found = []
        for _ in conditions:
            values = [
                self._value(example, [next(logprobs) for _ in pairs])
                for example, pairs in zip(self.examples, options, strict=True)
            ]
            found.append(Scores(np.array(values)))
        return found

    def _options(self, example: Example) -> list[tuple[str, str]]:
        """The prompts and answers whose log-probabilities make the value."""
        if self.metric == "choice_accuracy":
            choices = example.choices or ()
            prompt = choice_prompt(example.prompt, choices)
            return [(prompt, letter) for letter in CHOICE_LETTERS[: len(choices)]]
        if self.of_truth_ratios:
            answers = (str(example.paraphrased_answer), *(example.perturbed_answers or ()))
            return [(example.prompt, answer) for answer in answers]
        return [(example.prompt, str(example.answer))]

    def _value(self, example: Example, logprobs: list[NDArray[np.float64]]) -> float:
        if self.metric == "choice_accuracy":
            return float(choose([float(letter.sum()) for letter in logprobs]) == example.answer_index)
        if self.metric == "forget_quality":
            paraphrased, *perturbed = (float(answer.mean()) for answer in logprobs)
            return log_truth_ratio(paraphrased, perturbed)
        if self.metric == "truth_ratio":
            return preference_for_truth(truth_ratio(logprobs[0], logprobs[1:]))
        return answer_probability(logprobs[0])

"""Scores of multiple-choice documents, read from lm-evaluation-harness's samples.

Beside lm-eval's own metrics stand the two ways in which ECO (arXiv 2406.07933; `choice_by_top_logit.py` and
`choice_by_top_prob.py` of its code) takes a model's choice, on lm-eval's prompts and judged by lm-eval:

- `acc_top_prob`: the choice of the highest mean log-probability per token. lm-eval's `acc` takes the sum over its
  tokens and `acc_norm` the sum by characters.
- `acc_top_logit`: the choice of the highest logit where the choices' single tokens stand, for choices that are labels
  (A to D, yes and no). The logits of one place differ from its log-probabilities by a constant. Where a label is one
  token, it agrees with `acc`. ECO takes the token of the bare letter, whatever the tokenizer makes of it; here it is
  the letter as it follows the prompt, with lm-eval's space before it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evaluation.replies import Reply
from evaluation.suite import Answer, Score

TOP_LOGIT: Final = "acc_top_logit"
TOP_PROB: Final = "acc_top_prob"

Sample = Mapping[str, Any]
"""What lm-eval logs of one document under one filter."""


def chooses(task: Any) -> bool:
    """Whether a task is answered by the likeliest of several texts, and lm-eval itself judges which."""
    return bool(task.OUTPUT_TYPE == "multiple_choice" and not callable(task.get_config("process_results")))


def metric_name(metric: str, filter_name: str) -> str:
    """lm-eval's "metric,filter" as one name; "none" is its name for no filter."""
    return metric if filter_name == "none" else f"{metric}_{filter_name}"


def is_mean(values: Sequence[Any], aggregated: Any) -> bool:
    """Whether lm-eval's aggregate is the mean of finite numbers."""
    if not all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in values):
        return False
    return math.isclose(sum(values) / len(values), aggregated, rel_tol=1e-9, abs_tol=1e-12)


@dataclass(frozen=True)
class TaskSamples:
    """What lm-eval found of one task.

    Attributes:
        subset, group: of the scores.
        name: the task's.
        task: lm-eval's `Task`.
        samples: one for each document and filter.
    """

    subset: str
    group: str
    name: str
    task: Any
    samples: Sequence[Sample]

    def metrics(self) -> Iterator[tuple[str, str, list[Sample]]]:
        """Metric, filter, and the samples that have it."""
        for one in dict.fromkeys(sample["filter"] for sample in self.samples):
            mine = [sample for sample in self.samples if sample["filter"] == one]
            for metric in dict.fromkeys(metric for sample in mine for metric in sample["metrics"]):
                yield metric, one, [sample for sample in mine if metric in sample["metrics"]]

    def score(self, metric: str, sample: Sample, value: float) -> Score:
        return Score(self.subset, metric, self._example(sample), float(value), self.group)

    def eco_scores(self, replies: Mapping[tuple[str, str], Reply]) -> Iterator[Score]:
        """The module's two metrics, where they apply.

        Args:
            replies: by context and continuation.
        """
        if not chooses(self.task):
            return
        mine = [sample for sample in self._unfiltered() if "acc" in sample["metrics"]]
        scored = [[replies[tuple(arguments)] for arguments in sample["arguments"]] for sample in mine]
        for sample, choices in zip(mine, scored, strict=True):
            means = [sum(reply.logprobs) / len(reply.logprobs) for reply in choices]
            yield self.score(TOP_PROB, sample, self._accuracy(sample, means))
        if self._are_labels(mine, scored):
            for sample, choices in zip(mine, scored, strict=True):
                yield self.score(TOP_LOGIT, sample, self._accuracy(sample, [reply.logprobs[-1] for reply in choices]))

    def answers(self) -> Iterator[Answer]:
        """What was generated, for a task that generates."""
        if self.task.OUTPUT_TYPE == "generate_until":
            for sample in self._unfiltered():
                question, text = sample["arguments"][0][0], sample["resps"][0][0]
                yield Answer(self.subset, self._example(sample), question, text, str(sample["target"]))

    def _unfiltered(self) -> list[Sample]:
        """Each document once."""
        return [sample for sample in self.samples if sample["filter"] == self.samples[0]["filter"]]

    def _example(self, sample: Sample) -> str:
        """The document's place in its task, and a digest of what it says."""
        return f"{self.name}-{sample['doc_id']}-{sample['doc_hash'][:8]}"

    def _accuracy(self, sample: Sample, logprobs: Sequence[float]) -> float:
        """lm-eval's verdict on the choice of the highest of these numbers."""
        return float(self.task.process_results(sample["doc"], [(value, False) for value in logprobs])["acc"])

    def _are_labels(self, samples: Sequence[Sample], scored: Sequence[Sequence[Reply]]) -> bool:
        """Whether all documents have the same choices, and the last token alone tells one from another.

        A target that gives no token ids is trusted with choices of one character: before it stands the same text.
        """
        if not samples or self.task.multiple_input:
            return False
        first = self.task.doc_to_choice(samples[0]["doc"])
        if any(self.task.doc_to_choice(sample["doc"]) != first for sample in samples):
            return False
        are_letters = all(len(choice) == 1 for choice in first)
        for choices in scored:
            lengths = {len(reply.logprobs) for reply in choices}
            ids_known = all(reply.token_ids for reply in choices)
            differ_in_last = len({reply.token_ids[:-1] for reply in choices}) == 1 if ids_known else are_letters
            if lengths != {1} and (len(lengths) > 1 or not differ_in_last):
                return False
        return True

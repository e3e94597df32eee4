"""TOFU (Maini et al. 2024, arXiv 2401.06121): probability, ROUGE-L recall and truth ratio on four sets of questions.

Definitions are in `evaluation.tofu.metrics`. What this suite does otherwise than the official `evaluate_util.py`:

- Loss over the answer's tokens as `Ask(answer=...)` gives them. The official code also counts the end-of-sequence
  token after the answer and uses its own template; for phi that template's "Answer: " stands in the answer too.
- An answer may be `max_new_tokens` long, 200 by default. The official code limits prompt and answer together to 200.
- All questions. The official `ds_size` takes the first 300 of each set, so of forget10 and of retain 300 of 400:
  `limit=300, seed=None`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, get_args

import numpy as np

from evaluation.errors import DataError
from evaluation.replies import Ask, Asker, Reply
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from evaluation.tofu.data import Question, digests_of_questions, drawn_questions, load_questions
from evaluation.tofu.metrics import DIRECTIONS, HEADLINE, SUBSETS, Mean, Subset, example_metrics, tofu_figures
from scoring.metrics import rouge_l_recall

MAX_NEW_TOKENS: Final = 200


class TofuSuite(Suite):
    """A suite of up to four sets; the sets' names are the scores' subsets.

    Metrics of a question: `probability`, `rouge_l` of the greedy answer, `truth_ratio` (R itself) and `truth_score`
    (R as the official code aggregates it: min(R, 1/R) on forget, max(0, 1 - R) elsewhere).

    Args:
        sources: where each set is (see `sources.read_source`); `folder_sources` and `hub_sources` name TOFU's own.
        subsets: the sets to measure of those given; None: all of them.
        limit: questions of each set at most; None: all.
        seed: of the choice of these; None: the first ones, as in the official code.
        generated_only: measure `rouge_l` alone, for a target that gives no log-probabilities.
        max_new_tokens: of a generated answer.
        mean: of the wrong answers' probabilities; "geometric" as in the official code, "arithmetic" as in the paper.

    Raises:
        DataError: an option or a source cannot be used; files and columns are checked here.
    """

    name = "tofu"
    unbounded_metrics = ("truth_ratio",)
    directions = DIRECTIONS

    def __init__(
        self,
        sources: Mapping[Subset, str],
        *,
        subsets: Sequence[str] | None = None,
        limit: int | None = None,
        seed: int | None = 0,
        generated_only: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
        mean: Mean = "geometric",
    ) -> None:
        for name in subsets or ():
            if name not in SUBSETS:
                raise DataError(f"--subsets: {name!r} is none of {', '.join(SUBSETS)}")
            if name not in sources:
                raise DataError(f"--subsets: {name} is not in --data")
        self._sources = {name: sources[name] for name in SUBSETS if name in (subsets or sources)}
        if not self._sources:
            raise DataError(f"no data to measure; give one or more of {', '.join(SUBSETS)}")
        if limit is not None and limit < 1:
            raise DataError(f"--limit: {limit} is not possible; give 1 or more, or leave it out for all questions")
        if max_new_tokens < 1:
            raise DataError(f"--max-new-tokens: {max_new_tokens} is not possible; give 1 or more")
        if mean not in get_args(Mean):
            raise DataError(f"--truth-ratio: {mean!r} is none of {', '.join(get_args(Mean))}")
        self._limit, self._seed = limit, seed
        self._generated_only, self._max_new_tokens, self._mean = generated_only, max_new_tokens, mean
        self._questions = {
            subset: drawn_questions(subset, load_questions(subset, source, generated_only=generated_only), limit, seed)
            for subset, source in self._sources.items()
        }
        measured = [name for name in HEADLINE if "/" not in name or name.partition("/")[0] in self._questions]
        self.headline = [f"{subset}/rouge_l" for subset in self._questions] if generated_only else measured

    def describe(self) -> Mapping[str, object]:
        data: dict[str, object] = {}
        for subset, questions in self._questions.items():
            file = re.split(r"[/\\]", self._sources[subset])[-1]  # its folder decides nothing
            data[subset] = {"file": file, **digests_of_questions(questions), "questions": len(questions)}
        return {
            "suite": self.name,
            "data": data,
            "limit": self._limit,
            "seed": self._seed,
            "generated_only": self._generated_only,
            "max_new_tokens": self._max_new_tokens,
            "truth_ratio_mean": self._mean,
        }

    def probe(self) -> Sequence[Ask]:
        """Of the first set, which is the forget set where there is one: a guard shows on what it flags."""
        first = spread(next(iter(self._questions.values())))
        asks = {key: ask for number, one in enumerate(first) for key, ask in self._asks(f"probe{number}", one).items()}
        return [ask for key, ask in asks.items() if key.endswith(("/generated", "/answer"))]

    def measure(self, ask: Asker) -> Outcome:
        keyed = [(f"{subset}/{q.id}", subset, q) for subset, asked in self._questions.items() for q in asked]
        asks: dict[str, Ask] = {}
        for key, _, question in keyed:
            asks |= self._asks(key, question)
        replies = ask(asks, "tofu")
        scores: list[Score] = []
        answers: list[Answer] = []
        for key, subset, question in keyed:
            text = replies[f"{key}/generated"].text
            values = {"rouge_l": rouge_l_recall(question.answer, text)}
            if not self._generated_only:
                values |= self._scored(subset, question, replies, key)
            scores += scores_of(subset, question.id, values, question.group)
            answers.append(Answer(subset, question.id, question.question, text, question.answer))
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        return tofu_figures(scores, reference)

    def _asks(self, key: str, question: Question) -> dict[str, Ask]:
        asks = {f"{key}/generated": Ask(question.question, max_new_tokens=self._max_new_tokens)}
        if self._generated_only:
            return asks
        asks[f"{key}/answer"] = Ask(question.question, question.answer)
        if question.paraphrased != question.answer:
            asks[f"{key}/paraphrased"] = Ask(question.question, question.paraphrased)
        for number, wrong in enumerate(question.perturbed):
            asks[f"{key}/perturbed{number}"] = Ask(question.question, wrong)
        return asks

    def _scored(self, subset: str, question: Question, replies: Mapping[str, Reply], key: str) -> dict[str, float]:
        def mean_logprob(name: str) -> float:
            return float(np.mean(replies[f"{key}/{name}"].logprobs))

        answer = mean_logprob("answer")
        paraphrased = mean_logprob("paraphrased") if question.paraphrased != question.answer else answer
        perturbed = [mean_logprob(f"perturbed{number}") for number in range(len(question.perturbed))]
        return example_metrics(subset, answer, paraphrased, perturbed, self._mean)

"""The user's own two files, as they were given to `eco policy build`: probability and ROUGE-L recall of each answer.

Probability is P(answer | question)^(1/|answer|), the geometric mean over the answer's tokens, and ROUGE-L recall that
of the greedy answer, as in TOFU (Maini et al. 2024, arXiv 2401.06121, section 2.2.1). Nothing but questions and right
answers is needed; a multiple-choice question is asked openly, and its right choice is the answer.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from evaluation.errors import DataError
from evaluation.replies import Ask, Asker
from evaluation.rows import answered_examples, question_id
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from scoring.metrics import rouge_l_recall
from sources import SourceError
from sources.examples import Example, check_disjoint
from storage.digests import sha256_of_json

MAX_NEW_TOKENS: Final = 128
_BETTER: Final = {"forget": "down", "retain": "up"}


class QaSuite(Suite):
    """Subsets `forget` and `retain`; metrics `rouge_l` and, unless `generated_only`, `probability`.

    Args:
        forget, retain: JSON lines (see `sources.examples.read_examples`); lines without an answer are left out.
        limit: examples of each set at most, drawn with `seed`; None: all.
        generated_only: for a target that gives no log-probabilities.
        max_new_tokens: of a generated answer.

    Raises:
        DataError: a file cannot be used, has no answers, or shares a prompt with the other.
    """

    name = "qa"

    def __init__(
        self,
        forget: Path,
        retain: Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        generated_only: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        if max_new_tokens < 1:
            raise DataError(f"--max-new-tokens: {max_new_tokens} is not possible; give 1 or more")
        files = {"forget": forget, "retain": retain}
        self._examples = {
            name: answered_examples(file, name=name, limit=limit, seed=seed) for name, file in files.items()
        }
        try:
            check_disjoint(*self._examples.values())
        except SourceError as error:
            raise DataError(str(error)) from error
        self._settings = {"limit": limit, "seed": seed, "generated_only": generated_only}
        self._generated_only, self._max_new_tokens = generated_only, max_new_tokens
        metrics = ("rouge_l",) if generated_only else ("probability", "rouge_l")
        self.headline = [f"{subset}/{metric}" for metric in metrics for subset in files]
        self.directions = {f"{subset}/{metric}": _BETTER[subset] for metric in metrics for subset in files}

    def describe(self) -> Mapping[str, object]:
        data = {
            subset: {"questions": len(found), "sha256": sha256_of_json([[one.prompt, one.answer] for one in found])}
            for subset, found in self._examples.items()
        }
        return {"suite": self.name, "data": data, **self._settings, "max_new_tokens": self._max_new_tokens}

    def probe(self) -> Sequence[Ask]:
        """Of the forget set: a guard shows on what it flags."""
        return [ask for one in spread(self._examples["forget"]) for ask in self._asks("", one).values()]

    def measure(self, ask: Asker) -> Outcome:
        keyed = [
            (f"{subset}/{example}", subset, example, one)
            for subset, found in self._examples.items()
            for number, one in enumerate(found)
            for example in (question_id(number, one.prompt, one.answer or ""),)
        ]
        asks: dict[str, Ask] = {}
        for key, _, _, one in keyed:
            asks |= self._asks(key, one)
        replies = ask(asks, self.name)
        scores: list[Score] = []
        answers: list[Answer] = []
        for key, subset, example, one in keyed:
            text = replies[f"{key}/generated"].text
            values = {"rouge_l": rouge_l_recall(one.answer or "", text)}
            if not self._generated_only:
                values["probability"] = math.exp(float(np.mean(replies[f"{key}/answer"].logprobs)))
            scores += scores_of(subset, example, values)
            answers.append(Answer(subset, example, one.prompt, text, one.answer or ""))
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        """None beyond the means."""
        del scores, reference
        return []

    def _asks(self, key: str, one: Example) -> dict[str, Ask]:
        asks = {f"{key}/generated": Ask(one.prompt, max_new_tokens=self._max_new_tokens)}
        return asks if self._generated_only else asks | {f"{key}/answer": Ask(one.prompt, one.answer)}

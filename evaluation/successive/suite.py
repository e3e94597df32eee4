"""Policies added in turn to one guard: after each, what is forgotten so far, what stays, and what the guard takes.

Every question is asked at every step: before the first addition, and after each. So a request is measured from its own
step on to the last, and until then it is among what must still be known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from rich.table import Table

from evaluation.errors import DataError
from evaluation.replies import Ask, Asker
from evaluation.rows import question_id
from evaluation.runs.record import RunRecord
from evaluation.successive.figures import (
    FORGET,
    LATENCY,
    PROBABILITY,
    RETAIN,
    ROUGE,
    WAITING,
    after,
    sequence_figures,
)
from evaluation.successive.latency import TIMED, TimedTarget
from evaluation.successive.sequence import Addition, read_sequence
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from scoring.metrics import rouge_l_recall
from sources.examples import Example
from storage.digests import sha256_of_json

MAX_NEW_TOKENS: Final = 128
#: Prompts that are timed, at most.
_TIMED: Final = 64


class SuccessiveSuite(Suite):
    """Subsets `forget`, `waiting` and `retain`, grouped by step; metrics `rouge_l` and, unless `generated_only`,
    `probability`, as the suite qa has them.

    Args:
        additions: the policies in the order in which they are added; the target must have the same.
        retain: what is to stay, JSON lines with answers.
        limit: examples of each set at most, drawn with `seed`; None: all.
        generated_only: for a target that gives no log-probabilities.
        max_new_tokens: of a generated answer.

    Raises:
        DataError: see `read_sequence`.
    """

    name = "successive"
    unbounded_metrics = TIMED

    def __init__(
        self,
        additions: Sequence[Addition],
        retain: Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        generated_only: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        if max_new_tokens < 1:
            raise DataError(f"--max-new-tokens: {max_new_tokens} is not possible; give 1 or more")
        self._sequence = read_sequence(additions, retain, limit=limit, seed=seed)
        self._settings = {"limit": limit, "seed": seed, "generated_only": generated_only}
        self._generated_only, self._max_new_tokens = generated_only, max_new_tokens
        self._metrics = (ROUGE,) if generated_only else (PROBABILITY, ROUGE)
        self._steps = steps = len(self._sequence.names)
        last = after(steps)
        self.headline = [
            "dds",
            "dus",
            *(f"{of}/{ROUGE}/{last}" for of in (FORGET, "request_1", RETAIN)),
            "came_back/worst",
            "utility_lost/worst",
        ]
        asked_for = (FORGET, *(f"request_{number}" for number in range(1, steps + 1)))
        named = [f"{of}/{metric}" for metric in self._metrics for of in asked_for]
        kept = [f"{of}/{metric}" for metric in self._metrics for of in (WAITING, RETAIN)]
        up = {"dus", *(name for one in [*kept, "utility"] for name in self._over_steps(one))}
        down = {"dds", "came_back/worst", "came_back/mean", "utility_lost/worst", "utility_lost/mean"}
        down |= {name for one in [*named, "deviation"] for name in self._over_steps(one)}
        self.directions = {**dict.fromkeys(sorted(up), "up"), **dict.fromkeys(sorted(down), "down")}

    def _over_steps(self, name: str) -> list[str]:
        """A figure's name, and that of it after each step."""
        return [name, *(f"{name}/{after(step)}" for step in range(self._steps + 1))]

    def describe(self) -> Mapping[str, object]:
        sets = {f"request_{number}": one for number, one in enumerate(self._sequence.forget, 1)}
        data = {
            name: {"questions": len(found), "sha256": sha256_of_json([[one.prompt, one.answer] for one in found])}
            for name, found in {**sets, RETAIN: self._sequence.retain}.items()
        }
        names = list(self._sequence.names)
        return {
            "suite": self.name,
            "requests": names,
            "data": data,
            **self._settings,
            "max_new_tokens": self._max_new_tokens,
        }

    def probe(self) -> Sequence[Ask]:
        """Of each request's set, which the guard flags once all policies are there."""
        firsts = [found[0] for found in self._sequence.forget[:-1]]
        asked = [*firsts, *spread(self._sequence.forget[-1])]
        return [ask for one in asked for ask in self._asks("", one, self._steps).values()]

    def measure(self, ask: Asker) -> Outcome:
        asks: dict[str, Ask] = {}
        for step in range(self._steps + 1):
            for _, example, one in self._examples():
                asks |= self._asks(f"{step}/{example}", one, step)
        replies = ask(asks, self.name)
        scores = self._latencies(ask) if ask.draw == 0 else []
        answers: list[Answer] = []
        for step in range(self._steps + 1):
            for request, example, one in self._examples():
                key = f"{step}/{example}"
                text = replies[f"{key}/generated"].text
                values = {ROUGE: rouge_l_recall(one.answer or "", text)}
                if not self._generated_only:
                    values[PROBABILITY] = math.exp(float(np.mean(replies[f"{key}/answer"].logprobs)))
                subset = RETAIN if not request else FORGET if request <= step else WAITING
                scores += scores_of(subset, f"{example}/{after(step)}", values, after(step))
                if step in (0, self._steps):
                    of = f"{FORGET if request else RETAIN}/{after(step)}"
                    answers.append(Answer(of, example, one.prompt, text, one.answer or ""))
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        """See `evaluation.successive.figures`."""
        del reference  # a model that never learned has no policies to add
        return sequence_figures(scores, self._steps, self._metrics)

    def _examples(self) -> Iterator[tuple[int, str, Example]]:
        """Number of the request, 0 for what stays; the example's id, which begins with it; and the example."""
        for request, found in enumerate((self._sequence.retain, *self._sequence.forget)):
            for number, one in enumerate(found):
                yield request, f"{request}/{question_id(number, one.prompt, one.answer or '')}", one

    def _asks(self, key: str, one: Example, step: int) -> dict[str, Ask]:
        asks = {f"{key}/generated": Ask(one.prompt, max_new_tokens=self._max_new_tokens, policies=step)}
        return asks if self._generated_only else asks | {f"{key}/answer": Ask(one.prompt, one.answer, policies=step)}

    def _latencies(self, ask: Asker) -> list[Score]:
        """What the policies take for a prompt after each step; none where the target cannot tell."""
        if not isinstance(ask.target, TimedTarget):
            return []
        examples = list(self._examples())
        some = examples[:: max(1, math.ceil(len(examples) / _TIMED))]
        scores: list[Score] = []
        for step in range(self._steps + 1):
            found = ask.target.latencies([Ask(one.prompt, policies=step) for _, _, one in some])
            if found is not None:
                for (_, example, _), ms in zip(some, found.ms, strict=True):
                    scores += scores_of(LATENCY, f"{example}/{after(step)}", {found.timed: ms}, after(step))
        return scores


def steps_table(record: RunRecord) -> Table:
    """A row for each step of a run of this suite."""
    value = {figure.name: figure.value for figure in record.figures}
    names = ["", *map(str, record.suite_settings["requests"])]
    steps = len(names) - 1

    def shown(name: str, digits: int = 3) -> str:
        return f"{value[name]:.{digits}f}" if math.isfinite(value.get(name, math.nan)) else "–"

    title = "ROUGE-L of the answers after each addition, and what a prompt takes the policies"
    timed = next((name for name in TIMED if f"{LATENCY}/{name}/{after(0)}" in value), TIMED[0])
    table = Table("step", "added", "forgotten so far", "first", "worst", "not yet asked", "retain", timed, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for step in range(steps + 1):
        at = after(step)
        mine = [f"request_{request}/{ROUGE}/{at}" for request in range(1, step + 1)]
        worst = max(mine, key=lambda name: value[name], default="")
        of_sets = [shown(f"{of}/{ROUGE}/{at}") for of in (WAITING, RETAIN)]
        first = [shown(f"{of}/{ROUGE}/{at}") for of in (FORGET, "request_1")]
        table.add_row(str(step), names[step], *first, shown(worst), *of_sets, shown(f"{LATENCY}/{timed}/{at}", 2))
    return table

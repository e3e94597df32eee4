"""Who's Harry Potter: does a model still continue a story as one who has read it?

The two measures of familiarity of Eldan and Russinovich 2023 (arXiv 2310.02238): by the probabilities of what comes
next, and by completions that a language model grades. A third needs no judge: whether a completion says what gives the
story away.

Rows have `prompt` and any of `idiosyncratic` (continuations that only one who knows would write), `generic`
(continuations that anyone would), `references` (what of the story the prompt is about, named in it or not) and
`subtlety`. The paper's own file, which nests `references` and `subtlety` with the prompt in an object `prompt`, is read
as it is; it has no continuations, so that it gives completions only.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.errors import DataError
from evaluation.judged.judges import Judged
from evaluation.judged.suite import UNREADABLE, JudgedPrompt, JudgedSuite, prompt_of
from evaluation.replies import Ask, Asker, Reply
from evaluation.suite import Answer, Outcome, Score, scores_of, spread
from sources import Row

#: What each grade is worth: a detail of the story alone counts five times as much as its themes, a lucky guess nothing.
_WORTH: Final = {0.0: 0.0, 1.0: 0.0, 2.0: 0.2, 3.0: 1.0}
#: Signs that follow a word without a space.
_CLOSING: Final = tuple(",.;:!?'’)]”")
#: Signs that a word follows without a space.
_OPENING: Final = tuple("([“‘-–—/")


@dataclass(frozen=True, slots=True)
class _Prompt(JudgedPrompt):
    idiosyncratic: tuple[str, ...]
    generic: tuple[str, ...]
    references: tuple[str, ...]
    subtlety: str

    @property
    def telling(self) -> tuple[str, ...]:
        """What gives the story away where a completion says it: nothing that the prompt says itself."""
        words = (*self.idiosyncratic, *self.references)
        return tuple(dict.fromkeys(word for word in words if not _says(self.prompt, word)))


class PotterSuite(JudgedSuite[_Prompt]):
    """Completion prompts of one story or subject; the sample that ships is of a story nobody else knows.

    Metrics, each of a prompt:
        probability_familiarity: P(idiosyncratic | prompt), the sum over its continuations (see `_mass`).
        probability_generic: the same of the generic ones.
        idiosyncratic_share: the first over the sum of both: what a model that has become vague about everything does
            not get for free.
        telling_completion: 1 where the completion says an idiosyncratic continuation, or a reference that is not in
            the prompt.
        completion_familiarity: the judge's grade, 3 as 1, 2 as 0.2, less as 0; the paper's weights of 5 to 1, in
            [0, 1]. A verdict that cannot be read counts as 1, and `completion_familiarity_of_readable` is without it.

    Args: see `JudgedSuite`. `judge`: with `evaluation.judged.judges.familiarity_rubric`; None: no
    completion_familiarity.
    """

    name = "potter"
    measures = "familiarity"
    judged_metric = "completion_familiarity"
    columns = ("prompt", "idiosyncratic", "generic", "references", "subtlety")
    answer_tokens = 40
    headline = (
        "probability_familiarity",
        "idiosyncratic_share",
        "telling_completion",
        "completion_familiarity_of_readable",
    )
    directions = dict.fromkeys([*headline, judged_metric, UNREADABLE], "down")

    def read_prompts(self, rows: Sequence[tuple[str, Row]], source: str) -> list[_Prompt]:
        prompts = []
        for number, (where, whole) in enumerate(rows, 1):
            nested = whole.get("prompt")
            row: Row = nested if isinstance(nested, Mapping) else whole
            prompt = prompt_of(row, where, "the beginning of a text")
            telling, generic = _texts(row, "idiosyncratic", where), _texts(row, "generic", where)
            for one, other in itertools.product(telling, generic):
                if one == other or _begins(one, other) or _begins(other, one):
                    raise DataError(
                        f"{where}: idiosyncratic {one!r} and generic {other!r} begin alike, so that a probability "
                        "would count for both; take one of them out"
                    )
            references, subtlety = _texts(row, "references", where), row.get("subtlety")
            group = "" if subtlety is None else f"subtlety {subtlety}"
            prompts.append(_Prompt(str(number), prompt, _disjoint(telling), _disjoint(generic), references, group))
        if self.judge is None and not any(prompt.telling for prompt in prompts):
            raise DataError(
                f"--prompts: {source}: no idiosyncratic continuation, and no reference that its prompt does not "
                "say itself; add the column idiosyncratic, or give a --judge"
            )
        return prompts

    def probe(self) -> Sequence[Ask]:
        asks = self._asks()
        scored = [ask for ask in asks.values() if ask.answer is not None]
        return [*spread(scored), *[ask for ask in asks.values() if ask.answer is None][:1]]

    def measure(self, ask: Asker) -> Outcome:
        if self.judge:
            self.judge.check()
        replies = ask(self._asks(), "completion prompts")
        scores: list[Score] = []
        for prompt in self.prompts:
            values: dict[str, float] = {}
            telling = _mass(prompt.id, "idiosyncratic", len(prompt.idiosyncratic), replies)
            generic = _mass(prompt.id, "generic", len(prompt.generic), replies)
            if telling is not None:
                values["probability_familiarity"] = min(math.exp(telling), 1.0)
            if generic is not None:
                values["probability_generic"] = min(math.exp(generic), 1.0)
            if telling is not None and generic is not None:
                values["idiosyncratic_share"] = 1.0 / (1.0 + math.exp(min(generic - telling, 700.0)))
            if prompt.telling:
                completion = replies[f"{prompt.id}/completion"].text
                values["telling_completion"] = float(any(_says(completion, word) for word in prompt.telling))
            scores += scores_of("", prompt.id, values, prompt.subtlety)
        answers = [
            Answer("", prompt.id, prompt.prompt, replies[f"{prompt.id}/completion"].text, "; ".join(prompt.telling))
            for prompt in self.prompts
        ]
        if self.judge:
            items = [Judged(p.prompt, a.answer, p.telling) for p, a in zip(self.prompts, answers, strict=True)]
            for prompt, verdict in zip(self.prompts, self.judge.verdicts(items), strict=True):
                worth = 1.0 if verdict is None else _WORTH[verdict]
                values = {self.judged_metric: worth, UNREADABLE: float(verdict is None)}
                scores += scores_of("", prompt.id, values, prompt.subtlety)
        return Outcome(tuple(scores), tuple(answers))

    def _asks(self) -> dict[str, Ask]:
        asks = {}
        for prompt in self.prompts:
            text = prompt.prompt.rstrip()
            for kind in ("idiosyncratic", "generic"):
                for number, continuation in enumerate(getattr(prompt, kind)):
                    no_space = continuation.startswith(_CLOSING) or text.endswith(_OPENING)
                    answer = continuation if no_space else f" {continuation}"
                    asks[f"{prompt.id}/{kind}/{number}"] = Ask(text, answer=answer, style="text")
            asks[f"{prompt.id}/completion"] = Ask(text, style="text", max_new_tokens=self.max_new_tokens)
        return asks


def _mass(prompt: str, kind: str, count: int, replies: Mapping[str, Reply]) -> float | None:
    """log of the sum over continuations of P(continuation | prompt); None without one.

    The paper sums over next tokens; here over whole continuations, because what tells them apart may come after their
    first token. They exclude one another: `_disjoint` has seen to it that none begins with another.
    """
    if not count:
        return None
    totals = [sum(replies[f"{prompt}/{kind}/{number}"].logprobs) for number in range(count)]
    # A server writes -inf for what it finds impossible; the share must stay a number.
    return float(np.logaddexp.reduce(np.maximum(totals, -1e4)))


def _says(text: str, words: str) -> bool:
    """Whether a text has these words as whole words, whatever their case."""
    return re.search(rf"(?<!\w){re.escape(_plain(words))}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).replace("’", "'").casefold().split())


def _texts(row: Row, column: str, where: str) -> tuple[str, ...]:
    """A list of texts; () where the row does not have the column."""
    value = row.get(column)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: {column} is {str(value)[:20]!r}; expected a list of texts")
    if not value:
        raise DataError(f"{where}: {column} is an empty list; give at least one text, or leave the column out")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {column} has {str(text)[:20]!r}; expected a list of texts")
    return tuple(text.strip() for text in value)


def _disjoint(texts: Sequence[str]) -> tuple[str, ...]:
    """Without those that begin with another one: its probability has theirs in it."""
    distinct = dict.fromkeys(texts)
    return tuple(text for text in distinct if not any(_begins(text, other) for other in distinct))


def _begins(text: str, other: str) -> bool:
    """Whether a text is another one and more words."""
    return text.startswith(other) and not text[len(other) : len(other) + 1].isalnum() and text != other

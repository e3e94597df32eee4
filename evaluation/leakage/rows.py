"""The questions of the leakage suite: columns `question` and `answer`, and wrong answers where a probe needs them.

Wrong answers are TOFU's `perturbed_answer`, with `paraphrased_answer` as the right one where there is one, so that the
right option is not the only one worded like the question; or multiple choice: `choices` with the number of the right
one in `answer`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

from evaluation.errors import DataError
from evaluation.leakage.probing import MIN_PER_CHOICE, Options
from evaluation.rows import check_limit, digest_of_rows, drawn
from sources import Row, SourceError, flag_of, read_source

__all__ = ["WRONG_ANSWERS", "Question", "Subset", "load_subset", "probe_options"]

#: Wrong answers of one probe question: four options, as ECO's WMDP has.
WRONG_ANSWERS = 3

_COLUMNS = ("question", "answer", "paraphrased_answer", "perturbed_answer", "choices")


@dataclass(frozen=True, slots=True)
class Question:
    """One row.

    Attributes:
        row: its place in the source, from 0.
        right, wrong: the options of a probe question; no `wrong` where the row has none.
    """

    row: int
    question: str
    answer: str
    right: str
    wrong: tuple[str, ...]

    @property
    def example(self) -> str:
        """Its place and what it asks, as the TOFU suite's ids: other texts at the same place have another id."""
        texts = json.dumps([self.question, self.answer])
        return f"{self.row}-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Subset:
    """The questions of one subset that are asked, in the order of their source."""

    name: str
    source: str
    questions: tuple[Question, ...]

    def describe(self) -> Mapping[str, object]:
        digest = digest_of_rows([asdict(question) for question in self.questions])
        return {"source": PurePath(self.source).name, "examples": len(self.questions), "sha256": digest}


def load_subset(source: str, *, name: str, limit: int | None, seed: int) -> Subset:
    """Read a source as written on the command line (see `sources`).

    Args:
        name: forget, retain or holdout: also the flag that errors name.
        limit: rows drawn with `seed`; None: all.

    Raises:
        DataError: it cannot be read, or a row has no question or answer; or `limit` is below 1.
    """
    check_limit(limit)
    try:
        rows = read_source(source, name=name, columns=_COLUMNS).rows
    except SourceError as error:
        raise DataError(str(error)) from error
    questions = [_question_of(number, where, row) for number, (where, row) in enumerate(rows)]
    return Subset(name, source, tuple(drawn(questions, limit, seed)))


def probe_options(subset: Subset) -> list[Options]:
    """The questions of a subset that have wrong answers.

    Raises:
        DataError: they are too few for a probe, or differ in their number of choices.
    """
    flag = f"{flag_of(subset.name)}: {subset.source}"
    found = [Options(one.example, one.question, one.right, one.wrong) for one in subset.questions if one.wrong]
    if not found:
        raise DataError(
            f"{flag}: the probe needs the column perturbed_answer (a list of {WRONG_ANSWERS} or more) or choices; add "
            "one, or leave probe out of --parts"
        )
    sizes = {len(one.wrong) + 1 for one in found}
    if len(sizes) > 1:
        raise DataError(
            f"{flag}: choices: {min(sizes)} to {max(sizes)} of them; the probe needs the same number in all rows"
        )
    needed = MIN_PER_CHOICE * sizes.pop()
    if len(found) < needed:
        raise DataError(
            f"{flag}: {len(found)} questions with wrong answers; the probe needs {needed} or more: raise --limit, or "
            "leave probe out of --parts"
        )
    return found


def _question_of(number: int, where: str, row: Row) -> Question:
    question = _text_of(row, "question", where)
    choices = row.get("choices")
    if choices is not None:
        texts = _texts_of(choices, "choices", where)
        right = row.get("answer")
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(texts) or len(texts) < 2:
            raise DataError(f"{where}: answer: expected the number of the right one of 2 or more choices, from 0")
        wrong = (*texts[:right], *texts[right + 1 :])
        return Question(number, question, texts[right], texts[right], wrong)
    answer = _text_of(row, "answer", where)
    perturbed = row.get("perturbed_answer")
    wrong = () if perturbed is None else _texts_of(perturbed, "perturbed_answer", where)[:WRONG_ANSWERS]
    right_text = answer if row.get("paraphrased_answer") is None else _text_of(row, "paraphrased_answer", where)
    return Question(number, question, answer, right_text, wrong if len(wrong) == WRONG_ANSWERS else ())


def _text_of(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column}: expected a text that is not empty, found {_shown(value)}")
    return value


def _texts_of(value: object, column: str, where: str) -> tuple[str, ...]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(one, str) and one for one in value)
    ):
        raise DataError(f"{where}: {column}: expected a list of texts, found {_shown(value)}")
    return tuple(value)


def _shown(value: object) -> str:
    return "none" if value is None else f"{type(value).__name__} {str(value)[:20]!r}"

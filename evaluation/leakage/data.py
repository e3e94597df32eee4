"""The questions of the leakage suite: columns `question` and `answer`, and wrong answers where a probe needs them.

Wrong answers are TOFU's `perturbed_answer`, with `paraphrased_answer` as the right one where there is one, so that the
right option is not the only one worded like the question; or multiple choice: `choices` with the number of the right
one in `answer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

import numpy as np

from evaluation.errors import DataError
from evaluation.leakage.probes import MIN_PER_CHOICE
from evaluation.rows import drawn, question_id, read_rows
from scoring.metrics import choice_prompt
from sources import Row, flag_of
from storage.digests import sha256_of_json

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
        return question_id(self.row, self.question, self.answer)


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A multiple-choice question as it is asked, and the number of the right option."""

    example: str
    prompt: str
    right: int


@dataclass(frozen=True, slots=True)
class Subset:
    """The questions of one subset that are asked, in the order of their source."""

    name: str
    source: str
    questions: tuple[Question, ...]

    def describe(self) -> Mapping[str, object]:
        digest = sha256_of_json([asdict(question) for question in self.questions], sort_keys=True)
        return {"source": PurePath(self.source).name, "examples": len(self.questions), "sha256": digest}


def load_subset(source: str, *, name: str, limit: int | None, seed: int) -> Subset:
    """Read a source as written on the command line (see `sources`).

    Args:
        name: forget, retain or holdout: also the flag that errors name.
        limit: rows drawn with `seed`; None: all.

    Raises:
        DataError: it cannot be read, or a row has no question or answer; or `limit` is below 1.
    """
    questions = []
    for number, (where, row) in enumerate(read_rows(source, name=name, columns=_COLUMNS)):
        question = _text_of(row, "question", where)
        if row.get("choices") is not None:
            texts, right = _texts_of(row, "choices", where), row.get("answer")
            if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(texts) or len(texts) < 2:
                raise DataError(f"{where}: answer: expected the number of the right one of 2 or more choices, from 0")
            wrong = (*texts[:right], *texts[right + 1 :])
            questions.append(Question(number, question, texts[right], texts[right], wrong))
            continue
        answer = reworded = _text_of(row, "answer", where)
        wrong = ()
        if row.get("perturbed_answer") is not None:
            wrong = _texts_of(row, "perturbed_answer", where)[:WRONG_ANSWERS]
        if row.get("paraphrased_answer") is not None:
            reworded = _text_of(row, "paraphrased_answer", where)
        enough = wrong if len(wrong) == WRONG_ANSWERS else ()
        questions.append(Question(number, question, answer, reworded, enough))
    return Subset(name, source, tuple(drawn(questions, limit, seed)))


def choice_questions(subset: Subset, seed: int) -> list[ChoiceQuestion]:
    """The questions of a subset that have wrong answers, as multiple-choice questions with shuffled options.

    Each number is right equally often, but for a remainder.

    Raises:
        DataError: they are too few for a probe, or differ in their number of choices.
    """
    flag = f"{flag_of(subset.name)}: {subset.source}"
    questions = [one for one in subset.questions if one.wrong]
    if not questions:
        raise DataError(
            f"{flag}: the probe needs the column perturbed_answer (a list of {WRONG_ANSWERS} or more) or choices; add "
            "one, or leave probe out of --parts"
        )
    sizes = {len(one.wrong) + 1 for one in questions}
    if len(sizes) > 1:
        span = f"{min(sizes)} to {max(sizes)}"
        raise DataError(f"{flag}: choices: {span} of them; the probe needs the same number in all rows")
    choices = sizes.pop()
    needed = MIN_PER_CHOICE * choices
    if len(questions) < needed:
        raise DataError(
            f"{flag}: {len(questions)} questions with wrong answers; the probe needs {needed} or more: raise --limit, "
            "or leave probe out of --parts"
        )
    generator = np.random.default_rng(seed)
    places = generator.permutation(np.arange(len(questions)) % choices).tolist()
    asked = []
    for one, place in zip(questions, places, strict=True):
        texts = [one.wrong[number] for number in generator.permutation(len(one.wrong))]
        texts.insert(place, one.right)
        asked.append(ChoiceQuestion(one.example, choice_prompt(one.question, texts), place))
    return asked


def _text_of(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column}: expected a text that is not empty, found {_shown(value)}")
    return value


def _texts_of(row: Row, column: str, where: str) -> tuple[str, ...]:
    value = row.get(column)
    texts = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    if not all(isinstance(one, str) and one for one in texts):
        raise DataError(f"{where}: {column}: expected a list of texts, found {_shown(value)}")
    return tuple(texts)


def _shown(value: object) -> str:
    return "none" if value is None else f"{type(value).__name__} {str(value)[:20]!r}"

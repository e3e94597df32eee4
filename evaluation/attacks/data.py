"""The questions that the attack suite asks: sets with answers, and hand-written questions that come from the side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from classifiers import Example, ExampleFileError
from evaluation.errors import DataError
from evaluation.rows import read_rows
from sources.examples import example_of

QUESTION_COLUMNS: Final = ("question", "prompt", "text", "answer", "completion", "choices")
_INDIRECT_COLUMNS: Final = ("prompt", "kind", "forget", "answer", "subject")
_OPTIONS = 4


@dataclass(frozen=True, slots=True)
class IndirectQuestion:
    """A hand-written prompt that comes at a subject from the side.

    Attributes:
        kind: of attack, such as "multi_hop" (through another fact), "alias" or "reverse_query".
        forget: whether it asks for what must be forgotten; False: for something beside it, which must be answered.
        answer: what gives it away, as short as it can be; None where `forget` is False and none is given.
    """

    prompt: str
    kind: str
    forget: bool
    answer: str | None


def read_indirect(source: str) -> list[IndirectQuestion]:
    """Rows with `prompt`, `kind`, `forget` (true or false) and, where that is true, `answer`; a row may say its
    `subject`, whom its prompt must not name.

    Raises:
        DataError: the source cannot be read, a row lacks one of them, or the prompt of what is to be forgotten holds
            the answer, which every echo would leak, or the subject; file and column are named.
    """
    questions = []
    for where, row in read_rows(source, name="indirect", columns=_INDIRECT_COLUMNS):
        forget = row.get("forget")
        if isinstance(forget, str) and forget.casefold() in ("true", "false"):  # CSV has no booleans
            forget = forget.casefold() == "true"
        if not isinstance(forget, bool):
            raise DataError(f"{where}: column forget: found {forget!r}; expected true or false")
        for column in ("prompt", "kind", *(["answer"] if forget else [])):
            if not isinstance(row.get(column), str) or not str(row[column]).strip():
                raise DataError(f"{where}: column {column}: found {row.get(column)!r}; expected text")
        answer = str(row["answer"]) if row.get("answer") else None
        for column in ("answer", "subject") if forget else ():
            if (said := row.get(column)) is None or said == "":  # CSV has no way to leave one out
                continue
            if not isinstance(said, str):
                raise DataError(f"{where}: column {column}: found {said!r}; expected text")
            if _holds(str(row["prompt"]), said):
                raise DataError(f"{where}: column {column}: stands in the prompt; an indirect question does not say it")
        questions.append(IndirectQuestion(str(row["prompt"]), str(row["kind"]), forget, answer))
    return questions


def _holds(text: str, part: str) -> bool:
    """Whether a text has a part as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(part.strip().casefold())}(?!\w)", text.casefold()) is not None


def read_questions(source: str, name: str, *, answers_for: Sequence[str] = ()) -> list[Example]:
    """Rows with a question, prompt or text, and an answer where `answers_for` names parts of the suite that need it.

    Args:
        name: of the set; messages name its flag.

    Raises:
        DataError: the source cannot be read, or a row lacks a column; file and column are named.
    """
    rows = read_rows(source, name=name, columns=QUESTION_COLUMNS)
    try:
        examples = [example_of(row, where) for where, row in rows]
    except ExampleFileError as error:
        raise DataError(str(error)) from error
    for (where, _), example in zip(rows, examples, strict=True):
        if answers_for and not example.answer:
            raise DataError(f"{where}: column answer: missing; --parts {', '.join(answers_for)} needs it")
    return examples


def options_of(examples: Sequence[Example], number: int) -> list[str]:
    """Answers to offer for multiple choice: the example's own options, or its answer among those of the three after
    it; none without an answer."""
    example = examples[number]
    if example.choices or example.answer is None:
        return list(example.choices or ())
    near = [examples[(number + step) % len(examples)].answer for step in range(_OPTIONS)]
    return [answer for answer in near if answer is not None]

"""What the columns of a row mean: a question with its answer, or plain text.

Read are TOFU's columns (`question`, `answer`), `prompt` with `answer` or `completion`, multiple choice as
`classifiers.read_examples` takes it, TruthfulQA's (`question`, `best_answer`, or its CSV's `Question`, `Best Answer`),
PKU-SafeRLHF's, and plain text in `text`, `article` or `content`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from classifiers.errors import ExampleFileError
from offline_training.errors import DataError
from sources import Row, Rows, SourceError, flag_of, read_source
from sources.examples import Example, example_of

__all__ = ["LoadedSource", "load_examples", "rows_of"]

_QUESTIONS = ("question", "prompt", "Question")
_BEST_ANSWERS = ("best_answer", "Best Answer")
_TEXTS = ("text", "article", "content")
_RESPONSES = (("response_0", "is_response_0_safe"), ("response_1", "is_response_1_safe"))
_COLUMNS = frozenset(
    {"answer", "completion", "choices", "paraphrased_answer", "perturbed_answer"}.union(
        _QUESTIONS,
        _BEST_ANSWERS,
        _TEXTS,
        *_RESPONSES,
        (f"option{separator}{number}" for separator in ("", "_") for number in range(1, 10)),
    )
)
_SAFETY = {"true": True, "1": True, "false": False, "0": False}

#: Rows of a published data set that are no example (an empty article) are passed over, and counted, up to this share.
#: Rows of a file never are.
_TOLERATED_SHARE = 0.01


@dataclass(frozen=True)
class LoadedSource:
    """The examples of one source.

    Attributes:
        examples: each with an answer; or, of plain text, none with one, and the text as prompt.
        is_text: it is plain text.
        notes: what was passed over and how much, one line each.
    """

    examples: tuple[Example, ...]
    is_text: bool
    notes: tuple[str, ...] = ()


def rows_of(source: str, *, name: str, columns: Iterable[str]) -> Rows:
    """`sources.read_source`, with its errors as this package's."""
    try:
        return read_source(source, name=name, columns=columns)
    except SourceError as error:
        raise DataError(str(error)) from error


def load_examples(source: str, *, name: str) -> LoadedSource:
    """Read a source as written on the command line (see `sources`).

    Of PKU-SafeRLHF the set named `forget` takes the responses that are not safe, any other set the safe ones, as in
    LLMU's `unlearn_harm.py` (Yao, Xu and Liu 2023, section 4.1).

    Args:
        name: of the set: `forget`, `retain` …; error messages name the flag `--name`.

    Raises:
        DataError: the source cannot be read, a row is malformed, empty or has no answer, or questions and plain text
            are mixed. One line that names flag, file and line.
    """
    read = rows_of(source, name=name, columns=_COLUMNS)
    examples: list[Example] = []
    refused: list[DataError] = []
    for where, row in read.rows:
        try:
            examples += _examples_of(row, where, unsafe=name == "forget")
        except DataError as error:
            refused.append(error)
        if refused and (not read.published or len(refused) > _TOLERATED_SHARE * len(read.rows)):
            raise refused[0]
    _check_one_kind(read.rows, examples, f"{flag_of(name)}: {source}")
    note = f"{flag_of(name)}: {len(refused)} of {len(read.rows)} rows of {source} are no example: passed over"
    return LoadedSource(tuple(examples), examples[0].answer is None, (note,) if refused else ())


def _examples_of(row: Row, where: str, *, unsafe: bool) -> Sequence[Example]:
    try:
        if all(column in row for pair in _RESPONSES for column in pair):
            return _responses_of(row, where, unsafe=unsafe)
        question = next((column for column in _QUESTIONS if column in row), None)
        if question is not None:
            return [_answered(row, question, where)]
        text = next((column for column in _TEXTS if column in row), None)
        if text is not None:
            return [Example(example_of({"text": row[text]}, where).prompt)]
    except ExampleFileError as error:
        raise DataError(str(error)) from error
    raise DataError(
        f"{where}: no known column; found {', '.join(map(str, row)) or 'none'}; expected question or prompt with "
        f"answer, or {', '.join(_TEXTS)}"
    )


def _answered(row: Row, question: str, where: str) -> Example:
    best = next((column for column in _BEST_ANSWERS if row.get(column) is not None), None)
    if best is not None and row.get("answer") is None:
        return example_of({"question": row[question], "answer": row[best]}, where)
    example = example_of(row if question != "Question" else {**row, "question": row[question]}, where)
    if example.answer is None:
        raise DataError(f"{where}: {question} without an answer; add one, or put plain text to learn from into text")
    return example


def _responses_of(row: Row, where: str, *, unsafe: bool) -> list[Example]:
    """The responses of one kind, without those that say nothing."""
    chosen = [text for text, safe in _RESPONSES if _is_true(row[safe], safe, where) != unsafe and row[text]]
    return [example_of({"prompt": row["prompt"], "answer": row[text]}, where) for text in chosen]


def _is_true(value: object, column: str, where: str) -> bool:
    known = _SAFETY.get(str(value).casefold())
    if known is None:
        raise DataError(f"{where}: {column} is {str(value)[:20]!r}; expected true or false")
    return known


def _check_one_kind(rows: Sequence[tuple[str, Row]], examples: Sequence[Example], where: str) -> None:
    if not examples:
        raise DataError(f"{where}: none of {len(rows)} rows has a response of the wanted kind (not safe for --forget)")
    texts = sum(example.answer is None for example in examples)
    if 0 < texts < len(examples):
        raise DataError(
            f"{where}: {texts} rows of plain text among {len(examples) - texts} questions; put them into separate files"
        )

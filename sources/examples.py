"""Forget and retain sets: JSON lines in, checked `Example`s out."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sources.read import SourceError, json_lines, read_text
from storage.whole import write_whole
from text.normalise import normalise

_PROMPT_FIELDS = ("question", "prompt", "text")
_ANSWER_FIELDS = {"question": ("answer",), "prompt": ("answer", "completion"), "text": ()}
_EXPECTED = "expected an object with question, prompt or text (and optionally answer, or choices and answer)"
_OPTION = re.compile(r"option_?(\d+)")
_LISTED_DUPLICATES = 10


class ExampleFileError(SourceError):
    """A forget or retain set cannot be used: rows that are no examples, none at all, or some of the other set's."""


@dataclass(frozen=True)
class Example:
    """One thing to forget or to retain: what a user may ask or write, and what the model would answer."""

    prompt: str
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    """The options of a multiple-choice question, in order; `answer` is one of them."""
    answer_index: int | None = None
    """Which of `choices` is right, from 0."""
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] | None = None
    """Wrong answers of the right one's form: with the paraphrase, what a truth ratio needs (TOFU, section 2.2.2)."""


def read_examples(path: str | Path) -> list[Example]:
    """Read a JSON-lines file; blank lines are skipped, fields that are not named here are ignored.

    A line has its text in question, prompt or text. It may have an answer (or completion), a
    paraphrased_answer and a perturbed_answer (a string or a list). A multiple-choice question lists its options
    as choices (or option1, option2, …), its answer being the option's text, its number from 0, or its letter.

    Raises:
        SourceError: the file is missing or not UTF-8, or a line is not JSON. The message names file and line.
        ExampleFileError: it is empty, or a line lacks a known field, or has one of the wrong type or without text.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file; expected JSON lines")
    examples = []
    for where, record in json_lines(read_text(path, str(path)), str(path), _EXPECTED):
        if not isinstance(record, dict):
            raise ExampleFileError(f"{where}: found a {type(record).__name__}; {_EXPECTED}")
        examples.append(example_of(record, where))
    if not examples:
        raise ExampleFileError(f"{path}: empty file; expected at least one JSON line")
    return examples


def example_of(record: Mapping[str, object], where: str) -> Example:
    """One row, from whatever file or data set, as an example; `where` opens the message of an error.

    Raises:
        ExampleFileError: as `read_examples`.
    """
    field = next((name for name in _PROMPT_FIELDS if name in record), None)
    if field is None:
        raise ExampleFileError(f"{where}: no known field; {_EXPECTED}")
    prompt = _text(record[field], field, where)
    if (chosen := _chosen(record, where)) is not None:
        choices, index = chosen
        return Example(prompt, choices[index], choices, index)
    answers = [name for name in _ANSWER_FIELDS[field] if record.get(name) is not None]
    paraphrased, perturbed = record.get("paraphrased_answer"), record.get("perturbed_answer")
    return Example(
        prompt,
        _text(record[answers[0]], answers[0], where) if answers else None,
        paraphrased_answer=None if paraphrased is None else _text(paraphrased, "paraphrased_answer", where),
        perturbed_answers=None if perturbed is None else _texts(perturbed, "perturbed_answer", where),
    )


def _chosen(record: Mapping[str, object], where: str) -> tuple[tuple[str, ...], int] | None:
    """The options, and the one meant by the answer, which may be its text, its letter, or its number from 0."""
    if record.get("choices") is not None:
        choices = _texts(record["choices"], "choices", where)
    else:
        numbered = sorted((int(option[1]), name) for name in record if (option := _OPTION.fullmatch(name)))
        if not numbered:
            return None
        choices = tuple(_text(record[name], name, where) for _, name in numbered)
    if len(choices) < 2:
        raise ExampleFileError(f"{where}: choices has {len(choices)} option; a multiple-choice question needs two")
    answer = record.get("answer")
    if isinstance(answer, str):
        if answer in choices:
            return choices, choices.index(answer)
        letter = ord(answer.strip().upper()) - ord("A") if len(answer.strip()) == 1 else -1
        answer = int(answer) if answer.strip().isdigit() else letter
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return choices, answer
    raise ExampleFileError(
        f"{where}: answer is none of the {len(choices)} choices; give an option's text, letter, or number from 0"
    )


def _texts(value: object, field: str, where: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ExampleFileError(f"{where}: {field} is a {type(value).__name__}; expected a list of strings")
    return tuple(_text(item, field, where) for item in values)


def _text(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise ExampleFileError(f"{where}: {field} is a {type(value).__name__}; expected a string")
    if not value.strip():
        raise ExampleFileError(f"{where}: {field} is empty; expected text")
    return value


def save_examples(path: str | Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines that `read_examples` reads back as they were; the file appears whole."""
    lines = []
    for example in examples:
        record: dict[str, object] = {"prompt": example.prompt}
        if example.choices is not None:
            record |= {"choices": list(example.choices), "answer": example.answer_index}
        elif example.answer is not None:
            record["answer"] = example.answer
        if example.paraphrased_answer is not None:
            record["paraphrased_answer"] = example.paraphrased_answer
        if example.perturbed_answers is not None:
            record["perturbed_answer"] = list(example.perturbed_answers)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    try:
        write_whole(Path(path), "".join(lines))
    except OSError as error:
        raise ExampleFileError(f"{path}: cannot be written ({error.strerror})") from error


def check_disjoint(
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    forget_name: str = "forget set",
    retain_name: str = "retain set",
) -> None:
    """Refuse a prompt that is in both sets, after normalisation (case, white space, lookalike characters).

    Only prompts are compared: two different questions may well have the same answer. Line numbers count
    examples from 1, which is the line of the file where it has no blank lines.

    Raises:
        ExampleFileError: with the number of overlapping lines and the first of them, as pairs of line numbers.
    """
    retained: dict[str, int] = {}
    for number, example in enumerate(retain, 1):
        retained.setdefault(comparison_key(example.prompt), number)
    keys = [comparison_key(example.prompt) for example in forget]
    overlapping = [(number, retained[key]) for number, key in enumerate(keys, 1) if key in retained]
    if overlapping:
        pairs = ", ".join(f"{first}={other}" for first, other in overlapping[:_LISTED_DUPLICATES])
        more = ", …" if len(overlapping) > _LISTED_DUPLICATES else ""
        raise ExampleFileError(
            f"{len(overlapping)} overlapping lines ({forget_name} = {retain_name}: {pairs}{more}); "
            "a prompt can be forgotten or retained, not both: delete each from one file"
        )


def comparison_key(text: str) -> str:
    """The text as compared for sameness: normalised, casefolded, white space collapsed."""
    return " ".join(normalise(text).casefold().split())

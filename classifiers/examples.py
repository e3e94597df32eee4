"""Forget and retain sets: JSON lines in, checked `Example`s out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifiers.errors import ExampleFileError
from classifiers.normalise import normalise

_PROMPT_FIELDS = ("question", "prompt", "text")
_ANSWER_FIELDS = {"question": ("answer",), "prompt": ("answer", "completion"), "text": ()}
_EXPECTED = "expected an object with question and answer, or prompt (and optionally answer or completion), or text"


@dataclass(frozen=True)
class Example:
    """One thing to forget or to retain: what a user may ask or write, and what the model would answer."""

    prompt: str
    answer: str | None = None


def read_examples(path: str | Path) -> list[Example]:
    """Read a JSON-lines file; blank lines are skipped, fields that are not named above are ignored.

    Raises:
        ExampleFileError: the file is missing, not UTF-8, or empty, or a line is not JSON, lacks a known
            field, or has one of the wrong type or without text. The message names file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise ExampleFileError(f"{path}: no such file; expected JSON lines") from error
    except UnicodeDecodeError as error:
        raise ExampleFileError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ExampleFileError(f"{path}: cannot be read ({error.strerror})") from error
    examples = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise ExampleFileError(f"{path}: empty file; expected at least one JSON line")
    return examples


def _parse(line: str, where: str) -> Example:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ExampleFileError(f"{where}: malformed JSON ({reason}); {_EXPECTED}") from error
    if not isinstance(record, dict):
        raise ExampleFileError(f"{where}: found a {type(record).__name__}; {_EXPECTED}")
    field = next((name for name in _PROMPT_FIELDS if name in record), None)
    if field is None:
        raise ExampleFileError(f"{where}: no known field; {_EXPECTED}")
    answers = [name for name in _ANSWER_FIELDS[field] if record.get(name) is not None]
    if field == "question" and not answers:
        raise ExampleFileError(f"{where}: question without answer; {_EXPECTED}")
    return Example(
        prompt=_text(record, field, where),
        answer=_text(record, answers[0], where) if answers else None,
    )


def _text(record: Mapping[str, object], field: str, where: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise ExampleFileError(f"{where}: {field} is a {type(value).__name__}; expected a string")
    if not value.strip():
        raise ExampleFileError(f"{where}: {field} is empty; expected text")
    return value


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
        ExampleFileError: with the first overlapping line of each set and the number of overlapping lines.
    """
    retained: dict[str, int] = {}
    for number, example in enumerate(retain, 1):
        retained.setdefault(comparison_key(example.prompt), number)
    keys = [comparison_key(example.prompt) for example in forget]
    overlapping = [(number, retained[key]) for number, key in enumerate(keys, 1) if key in retained]
    if overlapping:
        first, other = overlapping[0]
        raise ExampleFileError(
            f"{forget_name} line {first} is also {retain_name} line {other} "
            f"({len(overlapping)} overlapping lines); a prompt can be forgotten or retained, not both"
        )


def comparison_key(text: str) -> str:
    """The text as compared for sameness: normalised, casefolded, white space collapsed."""
    return " ".join(normalise(text).casefold().split())

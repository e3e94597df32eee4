"""TOFU's files: questions with a right answer, a paraphrase of it and wrong ones, checked before a model is asked."""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.errors import DataError
from evaluation.rows import digest_of_rows
from evaluation.tofu.metrics import SUBSETS, Subset
from sources import Row, SourceError, read_source

__all__ = ["Question", "digests_of_questions", "load_questions", "sample"]

_COLUMNS: Final = ("question", "answer", "paraphrased_answer", "perturbed_answer", "author")
#: Without a paraphrase; the official code (`config/eval_everything.yaml`) takes the answer itself.
_PLAIN: Final = frozenset({"real_authors", "world_facts"})

#: TOFU's 4,000 questions go by author, 20 of each; forgetNN is the last NN % of them, retain_perturbed the first 400.
_AUTHORS: Final = 200
_PER_AUTHOR: Final = 20
_FORGET_NAME: Final = re.compile(r"(?<![a-z0-9])forget(\d\d)(?:_perturbed)?(?![a-z0-9])")
_RETAIN_NAME: Final = re.compile(r"(?<![a-z0-9])retain_perturbed(?![a-z0-9])")
_RETAIN_QUESTIONS: Final = 400


@dataclass(frozen=True, slots=True)
class Question:
    """One question of TOFU.

    Attributes:
        row: its place in the file, from 0: the official logs' index.
        paraphrased: the right answer in other words; on real authors and world facts the answer itself.
        perturbed: wrong answers; empty where only generated answers are measured.
        group: its author; "" where that is not known.
    """

    row: int
    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]
    group: str = ""

    @property
    def id(self) -> str:
        """Its place and what it asks: "17-3fa9c2d1". Other texts at the same place have another id."""
        texts = json.dumps([self.question, self.answer])
        return f"{self.row}-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"


def load_questions(subset: Subset, source: str, *, generated_only: bool = False) -> list[Question]:
    """All questions of a source (see `sources.read_source`).

    Columns are `question`, `answer`, `perturbed_answer` (a list) and, of forget and retain, `paraphrased_answer`;
    with `generated_only` the first two are enough. A column `author` names the group; without it TOFU's own files,
    known by their names and sizes, are grouped as "author 1" to "author 200".

    Raises:
        DataError: the source cannot be read, or a column is missing or of the wrong type.
    """
    try:
        rows = read_source(source, name=subset, columns=_COLUMNS).rows
    except SourceError as error:
        raise DataError(str(error)) from error
    first_author = _first_author(subset, source, len(rows))
    return [
        _question(subset, row, number, where, first_author, generated_only) for number, (where, row) in enumerate(rows)
    ]


def sample(subset: str, questions: Sequence[Question], limit: int | None, seed: int | None) -> list[Question]:
    """At most `limit` questions in the order of the file: the same for the same seed, and more for a higher limit.

    Args:
        seed: None: the first ones, as the official code's `ds_size` takes them (whole authors at a time).
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    if seed is None:
        return list(questions[:limit])
    order = list(questions)
    random.Random(f"{seed}/{subset}").shuffle(order)  # noqa: S311 - a reproducible choice, nothing secret
    return sorted(order[:limit], key=lambda question: question.row)


def digests_of_questions(questions: Sequence[Question]) -> dict[str, str]:
    """sha256 in hex: of what is asked, with the right answers, and, where they were read, of all other answers.

    Two digests, since a run of generated answers alone is one of the same questions.
    """
    found = {"sha256": digest_of_rows([[one.id, one.question, one.answer, one.group] for one in questions])}
    if any(one.perturbed for one in questions):
        found["alternatives_sha256"] = digest_of_rows([[one.paraphrased, one.perturbed] for one in questions])
    return found


def _question(
    subset: Subset, row: Row, number: int, where: str, first_author: int | None, generated_only: bool
) -> Question:
    answer = _text(row, "answer", where)
    paraphrased = answer
    perturbed: tuple[str, ...] = ()
    if not generated_only:
        perturbed = _texts(row, "perturbed_answer", where)
        paraphrased = answer if subset in _PLAIN else _text(row, "paraphrased_answer", where)
    group = row.get("author") or ("" if first_author is None else f"author {first_author + number // _PER_AUTHOR}")
    return Question(number, _text(row, "question", where), answer, paraphrased, perturbed, str(group))


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if column not in row or value is None:
        raise DataError(f"{where}: no column {column}; {_expected(column)}")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {column} is {_shown(value)}; expected text that is not empty")
    return value


def _texts(row: Row, column: str, where: str) -> tuple[str, ...]:
    value = row.get(column)
    if column not in row or value is None:
        raise DataError(f"{where}: no column {column}; {_expected(column)}")
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: column {column} is {_shown(value)}; expected a list of wrong answers, one or more")
    if any(not isinstance(one, str) or not one.strip() for one in value):
        raise DataError(f"{where}: column {column} holds something that is no text, or empty; give each answer as text")
    return tuple(value)


def _expected(column: str) -> str:
    if column in ("question", "answer"):
        return "give each row a question and an answer"
    return "take TOFU's files that end in _perturbed, or measure generated answers only"


def _shown(value: object) -> str:
    return "empty" if value in ("", [], ()) or (isinstance(value, str) and not value.strip()) else type(value).__name__


def _first_author(subset: Subset, source: str, count: int) -> int | None:
    """The number of a TOFU file's first author; None where the source is not known to be one."""
    if subset == SUBSETS[0] and (named := _last_match(_FORGET_NAME, source)):
        authors = _AUTHORS * int(named[1]) // 100
        return _AUTHORS - authors + 1 if count == authors * _PER_AUTHOR else None
    if subset == SUBSETS[1] and _last_match(_RETAIN_NAME, source) and count == _RETAIN_QUESTIONS:
        return 1
    return None


def _last_match(pattern: re.Pattern[str], source: str) -> re.Match[str] | None:
    """In the last part of a path or a hub name: a folder's name says nothing of its files."""
    if source.startswith("hf:"):
        return pattern.search(source)
    return pattern.search(re.split(r"[/\\]", source)[-1])

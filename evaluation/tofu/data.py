"""TOFU's files: questions with a right answer, a paraphrase of it and wrong ones, checked before a model is asked."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evaluation.errors import DataError
from evaluation.rows import question_id, read_rows
from evaluation.tofu.metrics import FORGET, SUBSETS, Subset
from sources import HUB_PREFIX, Row
from sources.presets.names import TOFU_SPLITS
from storage.digests import sha256_of_json

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
        return question_id(self.row, self.question, self.answer)


def folder_sources(folder: str | Path, split: str = "forget10") -> dict[Subset, str]:
    """TOFU's files in a folder: `forget10_perturbed.jsonl` (or another split), `retain_perturbed.jsonl` and so on.

    Raises:
        DataError: there is no such folder or split.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"--data: {folder}: no such folder; give one with TOFU's files ({split}_perturbed.jsonl ...)")
    return {subset: str(place / f"{name}.jsonl") for subset, name in _names(split).items()}


def hub_sources(split: str = "forget10") -> dict[Subset, str]:
    """The hub's data set locuslab/TOFU.

    Raises:
        DataError: there is no such split.
    """
    return {subset: f"{HUB_PREFIX}locuslab/TOFU:{name}:train" for subset, name in _names(split).items()}


def _names(split: str) -> dict[Subset, str]:
    """Of TOFU's files, and of its configurations on the hub."""
    if split not in TOFU_SPLITS:
        raise DataError(f"--split: {split!r} is none of {', '.join(TOFU_SPLITS)}")
    return {subset: f"{split if subset == FORGET else subset}_perturbed" for subset in SUBSETS}


def load_questions(subset: Subset, source: str, *, generated_only: bool = False) -> list[Question]:
    """All questions of a source (see `sources.read_source`).

    Columns are `question`, `answer`, `perturbed_answer` (a list) and, of forget and retain, `paraphrased_answer`;
    with `generated_only` the first two are enough. A column `author` names the group; without it TOFU's own files,
    known by their names and sizes, are grouped as "author 1" to "author 200".

    Raises:
        DataError: the source cannot be read, or a column is missing or of the wrong type.
    """
    rows = read_rows(source, name="data", columns=_COLUMNS)
    first_author = _first_author(subset, source, len(rows))
    questions = []
    for number, (where, row) in enumerate(rows):
        answer = paraphrased = _text(row, "answer", where)
        perturbed: tuple[str, ...] = ()
        if not generated_only:
            perturbed = _texts(row, "perturbed_answer", where)
            paraphrased = answer if subset in _PLAIN else _text(row, "paraphrased_answer", where)
        group = row.get("author") or ("" if first_author is None else f"author {first_author + number // _PER_AUTHOR}")
        text = _text(row, "question", where)
        questions.append(Question(number, text, answer, paraphrased, perturbed, str(group)))
    return questions


def drawn_questions(subset: str, questions: Sequence[Question], limit: int | None, seed: int | None) -> list[Question]:
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
    digests = {"sha256": sha256_of_json([[one.id, one.question, one.answer, one.group] for one in questions])}
    if any(one.perturbed for one in questions):
        digests["alternatives_sha256"] = sha256_of_json([[one.paraphrased, one.perturbed] for one in questions])
    return digests


def _text(row: Row, column: str, where: str) -> str:
    value = _value(row, column, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {column} is {_shown(value)}; expected text that is not empty")
    return value


def _texts(row: Row, column: str, where: str) -> tuple[str, ...]:
    value = _value(row, column, where)
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: column {column} is {_shown(value)}; expected a list of wrong answers, one or more")
    if any(not isinstance(one, str) or not one.strip() for one in value):
        raise DataError(f"{where}: column {column} holds something that is no text, or empty; give each answer as text")
    return tuple(value)


def _value(row: Row, column: str, where: str) -> object:
    value = row.get(column)
    if value is None:
        expected = (
            "give each row a question and an answer"
            if column in ("question", "answer")
            else "take TOFU's files that end in _perturbed, or measure generated answers only"
        )
        raise DataError(f"{where}: no column {column}; {expected}")
    return value


def _shown(value: object) -> str:
    return "empty" if value in ("", [], ()) or (isinstance(value, str) and not value.strip()) else type(value).__name__


def _first_author(subset: Subset, source: str, count: int) -> int | None:
    """The number of a TOFU file's first author; None where the source is not known to be one."""
    # A folder's name says nothing of its files.
    name = source if source.startswith(HUB_PREFIX) else re.split(r"[/\\]", source)[-1]
    if subset == FORGET and (named := _FORGET_NAME.search(name)):
        authors = _AUTHORS * int(named[1]) // 100
        return _AUTHORS - authors + 1 if count == authors * _PER_AUTHOR else None
    if subset == "retain" and _RETAIN_NAME.search(name) and count == _RETAIN_QUESTIONS:
        return 1
    return None

"""The rows of a suite's data: which of them are measured, what identifies them, and the samples that come with us."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from evaluation.errors import DataError
from sources import Row, SourceError, read_source
from sources.examples import Example, read_examples
from storage.digests import sha256_of_json

_T = TypeVar("_T")


def read_rows(source: str, *, name: str, columns: Iterable[str]) -> tuple[tuple[str, Row], ...]:
    """Where each row stands, as error messages open, and the row (see `sources.read_source`).

    Raises:
        DataError: the source cannot be read.
    """
    try:
        return read_source(source, name=name, columns=columns).rows
    except SourceError as error:
        raise DataError(str(error)) from error


def drawn(rows: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """At most `limit` of the rows, in their order: the same for the same seed, and more for a higher limit.

    Args:
        limit: None: all.

    Raises:
        DataError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit: {limit} is not possible; give 1 or more, or leave it out for all")
    picked = np.random.default_rng(seed).permutation(len(rows))[:limit].tolist()
    return [rows[number] for number in sorted(picked)]


def answered_examples(file: str | Path, *, name: str, limit: int | None, seed: int) -> list[Example]:
    """The examples of one's own forget or retain file that have an answer, at most `limit` of them.

    Args:
        name: of the set; messages name its flag.

    Raises:
        DataError: the file cannot be read, or no line has an answer.
    """
    try:
        examples = [example for example in read_examples(file) if example.answer]
    except SourceError as error:
        raise DataError(f"--{name}: {error}") from error
    if not examples:
        raise DataError(f"--{name}: {file}: no line has an answer to compare with; add answers")
    return drawn(examples, limit, seed)


def question_id(row: int, question: str, answer: str) -> str:
    """Its place and what it asks: "17-3fa9c2d1". Other texts at the same place have another id."""
    return f"{row}-{sha256_of_json([question, answer])[:8]}"


def sample_file(suite: str, name: str) -> str:
    """The path of one of the small samples that come with the project: to try a suite with, and for its tests.

    Args:
        suite: the folder of the suite within the package.
    """
    return str(Path(__file__).parent / suite / "samples" / name)

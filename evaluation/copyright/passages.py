"""Passages with a beginning to give and a continuation to compare.

Read are rows with `prompt` and `completion`, taken as they are, and plain text in `text`, `article` or `content`: each
row of a table is one passage, and a plain text file, such as a book, is cut into many. `group` names what a passage
belongs to, such as a section or a work.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evaluation.errors import DataError
from evaluation.rows import drawn
from sources import HUB_PREFIX, Row, SourceError, read_source

#: A continuation of fewer words says nothing of copying; verbatim n-grams are of this many words too.
LEAST_WORDS: Final = 5

_NAME: Final = "passages"
_TEXTS: Final = ("text", "article", "content")
_COLUMNS: Final = frozenset({"prompt", "completion", "title", "group", *_TEXTS})
#: A published data set has a few empty or short articles; up to this share of them is passed over, and counted.
_TOLERATED_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Split:
    """What of a passage is given and what is compared.

    Attributes:
        prompt_words: of plain text, how many of its first words are given.
        answer_words: how many words of the continuation an answer is compared with; fewer where the passage ends.
        title_prompt: the column `title` is given instead, and the whole text is the continuation, as ECO does with
            news articles.
    """

    prompt_words: int = 50
    answer_words: int = 100
    title_prompt: bool = False

    def __post_init__(self) -> None:
        if self.prompt_words < 1:
            raise DataError(f"--prompt-words: {self.prompt_words} gives nothing of a passage; give 1 or more")
        if self.answer_words < LEAST_WORDS:
            raise DataError(f"--answer-words: {self.answer_words} are too few to compare; give {LEAST_WORDS} or more")


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage.

    Attributes:
        example: its id: its number in the source, from 1.
        prompt: what is given.
        continuation: all that follows.
        reference: the words of it that an answer is compared with.
        group: see the module; "" for none.
    """

    example: str
    prompt: str
    continuation: str
    reference: str
    group: str = ""


def load_passages(source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> tuple[list[Passage], int]:
    """Read a source as written on the command line (see `sources`).

    Args:
        limit: at most so many, drawn with `seed` and left in their order; None: all.

    Returns:
        Passages, at least one, and how many rows of a published data set were none.

    Raises:
        DataError: the source cannot be read, a row has no known column or is no text, or a passage ends before, or
            hardly after, what is given of it. One line that names flag, file and line.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit: {limit} leaves no passage; give 1 or more")
    try:
        read = read_source(source, name=_NAME, columns=_COLUMNS)
    except SourceError as error:
        raise DataError(str(error)) from error
    path = Path(source).expanduser()
    is_plain_text = not source.startswith(HUB_PREFIX) and (path.is_dir() or path.suffix == ".txt")
    passages: list[Passage] = []
    refused: list[DataError] = []
    for number, (where, row) in enumerate(_chunked(read.rows, split) if is_plain_text else read.rows, 1):
        try:
            passages.append(_passage(str(number), row, where, split))
        except DataError as error:
            refused.append(error)
        if refused and (not read.published or len(refused) > _TOLERATED_SHARE * len(read.rows)):
            raise refused[0]
    return drawn(passages, limit, seed), len(refused)


def first_words(text: str, count: int) -> str:
    """The text up to the end of its `count`-th word; words are what stands between white space, which is kept."""
    ends = [word.end() for word in itertools.islice(re.finditer(r"\S+", text), count)]
    return text[: ends[-1]] if ends else ""


def _chunked(rows: Iterable[tuple[str, Row]], split: Split) -> Iterator[tuple[str, Row]]:
    """A book in parts of as many words as are given and compared; the last, shorter part of a longer text is left out.

    ECO's parts of a novel have a fixed number of tokens instead.
    """
    size = split.prompt_words + split.answer_words
    for where, row in rows:
        work = Path(where.removeprefix(f"--{_NAME}: ")).stem
        text = str(row["text"])
        words = [word.span() for word in re.finditer(r"\S+", text)]
        starts = range(0, max(len(words) - size, 0) + 1, size)
        for start in starts:
            last = min(start + size, len(words)) - 1
            part = f"{where}: part {start // size + 1}" if len(starts) > 1 else where
            yield part, {"text": text[words[start][0] : words[last][1]], "group": work}


def _passage(example: str, row: Row, where: str, split: Split) -> Passage:
    """A row divided into what is given and what follows."""
    column = next((column for column in _TEXTS if column in row), None)
    if "prompt" in row or "completion" in row:
        prompt, continuation = _text(row, "prompt", where), _text(row, "completion", where)
    elif column is None:
        raise DataError(
            f"{where}: no known column; found {', '.join(map(str, row)) or 'none'}; expected one of "
            f"{', '.join(_TEXTS)}, or prompt with completion"
        )
    elif split.title_prompt:
        continuation, prompt = _text(row, column, where), _text(row, "title", where)
    else:
        text = _text(row, column, where)
        prompt = first_words(text, split.prompt_words)
        continuation = text[len(prompt) :]
        if (words := len(prompt.split())) < split.prompt_words:
            raise DataError(
                f"{where}: {column} has {words} words, fewer than the {split.prompt_words} to be given; take it out, "
                "or give less with --prompt-words"
            )
    reference = first_words(continuation, split.answer_words)
    if (words := len(reference.split())) < LEAST_WORDS:
        raise DataError(
            f"{where}: only {words} words follow what is given of the passage; take it out, or give less with "
            f"--prompt-words, so that {LEAST_WORDS} are left"
        )
    return Passage(example, prompt, continuation, reference, str(row.get("group") or ""))


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing" if value is None else "is empty" if isinstance(value, str) else f"is {value!r:.20}"
        raise DataError(f"{where}: {column} {problem}; give it text")
    return value

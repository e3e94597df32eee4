"""Where examples come from: a file, a folder of texts, or a data set of the hub. No column has a meaning in here.

A source is written as on the command line: `FILE.jsonl`, `.json`, `.csv`, `.parquet` (tables), `FILE.txt` or a folder
of them (plain text), or `hf:org/name[:config[:split]]` (a data set, or a local folder that `datasets` can load).
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import EcoError

__all__ = ["HUB_PREFIX", "Row", "Rows", "SourceError", "flag_of", "read_source"]

HUB_PREFIX = "hf:"

Row = Mapping[str, object]

_FORMS = "expected FILE.jsonl, .json, .csv, .parquet or .txt, a folder of .txt files, or hf:org/name[:config[:split]]"


class SourceError(EcoError):
    """A source cannot be read; one line that names flag, file and line, and says what to do."""


@dataclass(frozen=True)
class Rows:
    """What one source holds.

    Attributes:
        rows: each row with the words that open an error message about it: flag, file and line.
        published: it is a data set of the hub, so that nobody here wrote its few empty rows.
    """

    rows: tuple[tuple[str, Row], ...]
    published: bool = False


def flag_of(name: str) -> str:
    """The flag that gives the set of this name."""
    return f"--{name.replace('_', '-')}"


def read_source(source: str, *, name: str, columns: Iterable[str]) -> Rows:
    """All rows of a source, at least one. A plain text file is one row, whose only column is `text`.

    Args:
        name: of the set it is for (`forget`, `retain` …); error messages name the flag `--name`.
        columns: those worth reading; others may be left out of the rows.

    Raises:
        SourceError: the source is missing, unreadable, empty, or of a form that is not known.
    """
    flag = flag_of(name)
    if source.startswith(HUB_PREFIX):
        rows = Rows(tuple(_hub_rows(source, flag, frozenset(columns))), published=True)
    else:
        rows = Rows(tuple(_local_rows(source, flag)))
    if not rows.rows:
        raise SourceError(f"{flag}: {source}: empty; give at least one row")
    return rows


def _local_rows(source: str, flag: str) -> list[tuple[str, Row]]:
    path = Path(source).expanduser()
    where = f"{flag}: {source}"
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        if not texts:
            raise SourceError(f"{where}: no .txt file in this folder; {_FORMS}")
        return [_text_row(text, f"{flag}: {text}") for text in texts]
    if not path.exists():
        hint = f"for a data set of the hub write {HUB_PREFIX}{source}" if _may_be_hub_id(source) else _FORMS
        raise SourceError(f"{where}: no such file; {hint}")
    if path.suffix == ".txt":
        return [_text_row(path, where)]
    if path.suffix == ".parquet":
        return _numbered(_parquet_rows(path, where), where)
    if path.suffix == ".csv":
        return _numbered(_csv_rows(path, where), where)
    if path.suffix in (".jsonl", ".json"):
        return _json_rows(_text_of(path, where), where)
    raise SourceError(f"{where}: files ending in {path.suffix or 'nothing'} are not known; {_FORMS}")


def _may_be_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).suffix


def _numbered(rows: Iterable[Row], where: str) -> list[tuple[str, Row]]:
    return [(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]


def _text_of(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise SourceError(f"{where}: cannot be read ({error.strerror}); check the file and its rights") from error


def _text_row(path: Path, where: str) -> tuple[str, Row]:
    text = _text_of(path, where)
    if not text.strip():
        raise SourceError(f"{where}: empty file; expected text")
    return where, {"text": text}


def _json_rows(text: str, where: str) -> list[tuple[str, Row]]:
    """JSON lines, or one list of objects."""
    if text.lstrip().startswith("["):
        parsed: Any = _parsed(text, where)
        return [(f"{where}: row {number}", _object(row, where)) for number, row in enumerate(parsed, 1)]
    # Not splitlines(): U+2028 may stand inside a string.
    lines = [(f"{where}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(place, _object(_parsed(line, place), place)) for place, line in lines]


def _parsed(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise SourceError(
            f"{where}: malformed JSON ({reason}); expected one object per line, or a list of them"
        ) from error
    return parsed


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise SourceError(f"{where}: found a {type(row).__name__}; expected one object per line, or a list of them")
    return row


def _csv_rows(path: Path, where: str) -> list[Row]:
    try:
        return list(csv.DictReader(io.StringIO(_text_of(path, where), newline=""), strict=True))
    except csv.Error as error:
        raise SourceError(f"{where}: malformed CSV ({error}); quote the fields, or save it as JSON lines") from error


def _parquet_rows(path: Path, where: str) -> list[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{where}: not a readable parquet file ({_first_line(error)}); fetch it again") from error
    return rows


def _hub_rows(source: str, flag: str, columns: frozenset[str]) -> list[tuple[str, Row]]:
    import datasets  # type: ignore[import-untyped]

    repository, config, split = _hub_parts(source, flag)
    try:
        if split is None:
            split = _only_split(datasets.get_dataset_split_names(repository, config), source, flag)
        dataset: Any = datasets.load_dataset(repository, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"{flag}: {source}: cannot be loaded ({_first_line(error)}); check the name and the network, or download "
            "the data set and give its file"
        ) from error
    known = [column for column in dataset.column_names if column in columns]
    if not known:
        found = ", ".join(map(str, dataset.column_names))
        raise SourceError(
            f"{flag}: {source}: no known column; found {found}; expected one of {', '.join(sorted(columns))}"
        )
    return _numbered(dataset.select_columns(known).to_list(), f"{flag}: {source}")


def _hub_parts(source: str, flag: str) -> tuple[str, str | None, str | None]:
    repository, *more = source.removeprefix(HUB_PREFIX).split(":")
    if not repository or len(more) > 2:
        raise SourceError(
            f"{flag}: {source}: no data set's name; write hf:org/name, hf:org/name:config:split or ::split"
        )
    config, split = (*(part or None for part in more), None, None)[:2]
    return repository, config, split


def _only_split(splits: list[str], source: str, flag: str) -> str:
    """The one named train, or the only one there is: TruthfulQA has nothing but `validation`."""
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return splits[0]
    raise SourceError(f"{flag}: {source}: no split train; add one of {', '.join(splits)} as hf:org/name:config:split")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

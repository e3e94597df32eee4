"""Where examples come from: a file, a folder of texts, or a data set of the hub. No column has a meaning in here.

A source is written as on the command line: `FILE.jsonl`, `.json`, `.csv`, `.parquet` (tables), `FILE.txt` or a folder
of them (plain text), or `hf:org/name[:config[:split]]` (a data set, or a local folder that `datasets` can load).
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import EcoError, first_line

HUB_PREFIX = "hf:"

Row = Mapping[str, object]

_FORMS = "expected FILE.jsonl, .json, .csv, .parquet or .txt, a folder of .txt files, or hf:org/name[:config[:split]]"
_JSON_FORMS = "expected one object per line, or a list of them, or of texts"


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
    """All rows of a source, at least one.

    A plain text file is one row, whose only column is `text`; a list of texts in JSON is a row for each.

    Args:
        name: of the set it is for (`forget`, `retain` …); error messages name the flag `--name`.
        columns: those worth reading; others may be left out of the rows.

    Raises:
        SourceError: the source is missing, unreadable, empty, or of a form that is not known.
    """
    flag = flag_of(name)
    where = f"{flag}: {source}"
    published = source.startswith(HUB_PREFIX)
    if published:
        repository, *more = source.removeprefix(HUB_PREFIX).split(":")
        if not repository or len(more) > 2:
            raise SourceError(f"{where}: no data set's name; write hf:org/name, hf:org/name:config:split or ::split")
        config, split = (*(part or None for part in more), None, None)[:2]
        advice = "check the name and the network, or download the data set and give its file"
        dataset = hub_dataset(repository, config, split, where, advice)
        expected = frozenset(columns)
        known = [column for column in dataset.column_names if column in expected]
        if not known:
            found = ", ".join(map(str, dataset.column_names))
            raise SourceError(f"{where}: no known column; found {found}; expected one of {', '.join(sorted(expected))}")
        rows = _numbered(dataset.select_columns(known).to_list(), where)
    else:
        rows = _local_rows(source, flag)
    if not rows:
        raise SourceError(f"{where}: empty; give at least one row")
    return Rows(tuple(rows), published)


def _local_rows(source: str, flag: str) -> list[tuple[str, Row]]:
    path = Path(source).expanduser()
    where = f"{flag}: {source}"
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        if not texts:
            raise SourceError(f"{where}: no .txt file in this folder; {_FORMS}")
        return [_text_row(text, f"{flag}: {text}") for text in texts]
    if not path.exists():
        may_be_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix
        hint = f"for a data set of the hub write {HUB_PREFIX}{source}" if may_be_hub_id else _FORMS
        raise SourceError(f"{where}: no such file; {hint}")
    if path.suffix == ".txt":
        return [_text_row(path, where)]
    if path.suffix == ".parquet":
        return _numbered(parquet_table([path], where)[1].to_pylist(), where)
    if path.suffix == ".csv":
        return _numbered(csv_rows(read_text(path, where), where), where)
    if path.suffix in (".jsonl", ".json"):
        text = read_text(path, where)
        rows = json_values(text, where)
        is_list = text.lstrip().startswith("[")
        if is_list:
            rows = [(place, {"text": row} if isinstance(row, str) else row) for place, row in rows]
        for place, row in rows:
            if not isinstance(row, dict):
                raise SourceError(f"{where if is_list else place}: found a {type(row).__name__}; {_JSON_FORMS}")
        return rows
    raise SourceError(f"{where}: files ending in {path.suffix or 'nothing'} are not known; {_FORMS}")


def _text_row(path: Path, where: str) -> tuple[str, Row]:
    text = read_text(path, where)
    if not text.strip():
        raise SourceError(f"{where}: empty file; expected text")
    return where, {"text": text}


def _numbered(rows: Iterable[Row], where: str) -> list[tuple[str, Row]]:
    return [(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]


def read_text(path: Path, where: str) -> str:
    """A text file, without the mark that some editors put before UTF-8. `where` opens the message of an error.

    Raises:
        SourceError: it is not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise SourceError(f"{where}: cannot be read ({error.strerror}); check the file and its rights") from error


def json_values(text: str, where: str) -> list[tuple[str, Any]]:
    """The values of JSON lines, or of one list, each with the words that open an error message about it.

    Raises:
        SourceError: it is no JSON.
    """
    if text.lstrip().startswith("["):
        return _numbered(_parsed(text, where, _JSON_FORMS), where)
    return list(json_lines(text, where, _JSON_FORMS))


def json_lines(text: str, where: str, expected: str) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines, blank ones skipped, as from `json_values`; `expected` ends the message of an error."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 may stand inside a string
        if line.strip():
            yield f"{where}:{number}", _parsed(line, f"{where}:{number}", expected)


def _parsed(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise SourceError(f"{where}: malformed JSON ({reason}); {expected}") from error


def csv_rows(text: str, where: str) -> list[dict[str, object]]:
    """The rows of a CSV file with a header. Raises SourceError where it is malformed."""
    try:
        return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    except csv.Error as error:
        raise SourceError(f"{where}: malformed CSV ({error}); quote the fields, or save it as JSON lines") from error


def parquet_table(paths: Sequence[Path], where: str, wanted: Iterable[str] | None = None) -> tuple[list[str], Any]:
    """The columns of the first file, and all files as one pyarrow.Table with those of them that are wanted; None: all.

    Raises:
        SourceError: one is no parquet file, or they differ.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        names = pq.read_schema(paths[0]).names
        kept = names if wanted is None else [column for column in wanted if column in names]
        return names, pa.concat_tables([pq.read_table(path, columns=kept) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{where}: not a readable parquet file ({first_line(error)}); fetch it again") from error


def hub_dataset(repository: str, config: str | None, split: str | None, where: str, advice: str) -> Any:
    """A split of a data set of the hub, as `datasets` has it; None: train, or the only one there is.

    Raises:
        SourceError: it cannot be loaded, or it is not clear which split is meant.
    """
    import datasets  # type: ignore[import-untyped]

    try:
        if split is None:
            splits = datasets.get_dataset_split_names(repository, config)
            if "train" not in splits and len(splits) != 1:  # TruthfulQA has nothing but `validation`
                raise SourceError(
                    f"{where}: no split train; add one of {', '.join(splits)} as hf:org/name:config:split"
                )
            split = "train" if "train" in splits else splits[0]
        return datasets.load_dataset(repository, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"{where}: cannot be loaded ({first_line(error)}); {advice}") from error

"""Where the rows of a task come from: files in a folder the operator gives, or the hub. No task is known in here.

A row is a plain mapping from column to value. Reading a table checks its columns; what a row must look like is the
business of whoever reads it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from console.errors import EcoError
from text.sentences import passages

__all__ = ["LocatedSource", "Row", "Source", "Table", "TaskError", "hub_parquet", "locate", "open_table"]

Row = Mapping[str, object]

_TABLE_FORMATS = (".jsonl", ".json", ".csv", ".parquet")
#: A book is read as passages of about this many words: 256 tokens, as in ECO's copyright experiments (section 4).
_PASSAGE_WORDS = 200


class TaskError(EcoError):
    """A task preset cannot be planned or loaded; one line that names the task, file or column and what to do."""


@dataclass(frozen=True)
class Source:
    """One table a task needs, and the places it may be in."""

    name: str
    columns: tuple[str, ...]
    """Columns every row must have."""
    optional_columns: tuple[str, ...] = ()
    own_files: tuple[str, ...] = ()
    """Files the operator writes, as glob patterns below the data folder; without an extension, any table format."""
    copies: tuple[str, ...] = ()
    """The hub repository's own files, for data folders filled by a download; patterns as in `own_files`."""
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    optional: bool = False
    """Used where it is at hand: never fetched from the hub when a data folder is given."""


@dataclass(frozen=True)
class LocatedSource:
    """A source and where it was found: an operator's file, a copy of the hub's, the hub, or nowhere."""

    source: Source
    origin: Literal["own", "copy", "hub", "left out", "missing"]
    paths: tuple[Path, ...] = ()

    @property
    def place(self) -> str:
        """What an error message calls it: the file, or hub id, configuration and split."""
        if self.paths:
            more = f" (and {len(self.paths) - 1} more)" if len(self.paths) > 1 else ""
            return f"{self.paths[0]}{more}"
        if self.origin == "hub":
            config = f"config {self.source.config}, " if self.source.config else ""
            return f"hub {self.source.hub}, {config}split {self.source.split}"
        return f"{self.origin}: {self.wanted_files}"

    @property
    def wanted_files(self) -> str:
        """The file to put into the data folder, by the first name looked for."""
        name = (*self.source.own_files, *self.source.copies)[0]
        return name if _has_format(name) else f"{name}{{{','.join(_TABLE_FORMATS)}}}"

    @property
    def columns(self) -> str:
        """What a row must have, in words."""
        if (self.paths and self.paths[0].suffix == ".txt") or (
            self.origin == "missing" and ".txt" in self.wanted_files
        ):
            return "plain text"
        optional = "".join(f", {column} (optional)" for column in self.source.optional_columns)
        return ", ".join(self.source.columns) + optional


@dataclass(frozen=True)
class Table:
    """Rows by index, read when asked for: a table may be far larger than what a task takes of it."""

    place: str
    columns: tuple[str, ...]
    size: int
    take: Callable[[Sequence[int]], list[dict[str, object]]]

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Every row, with the words an error message names it by."""
        yield from self.at(range(self.size))

    def at(self, indices: Sequence[int]) -> Iterator[tuple[str, Row]]:
        """The rows of these indices, in their order."""
        for index, row in zip(indices, self.take(indices), strict=True):
            yield f"{self.place}: row {index + 1}", row


def hub_parquet(repository: str, config: str, split: str, columns: tuple[str, ...], **more: Any) -> Source:
    """A hub data set kept as `config/split-*.parquet`; a copy may also lie in a folder of the repository's name."""
    folder = repository.partition("/")[2]
    names = (f"{config}/{split}-*.parquet", f"{config}/{split}", f"{config}_{split}")
    more = {"name": f"{config}/{split}"} | more
    return Source(
        columns=columns,
        hub=repository,
        config=config,
        split=split,
        copies=names + tuple(f"{folder}/{name}" for name in names),
        **more,
    )


def locate(source: Source, data_dir: Path | None) -> LocatedSource:
    """Where the source is: the operator's own file first, then a copy of the hub's, then the hub itself."""
    if data_dir is not None:
        if paths := _first_match(data_dir, source.own_files):
            return LocatedSource(source, "own", paths)
        if paths := _first_match(data_dir, source.copies):
            return LocatedSource(source, "copy", paths)
    if source.hub is not None and not (source.optional and data_dir is not None):
        return LocatedSource(source, "hub")
    return LocatedSource(source, "left out" if source.optional else "missing")


def _first_match(folder: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    for pattern in patterns:
        for name in [pattern] if _has_format(pattern) else [pattern + suffix for suffix in _TABLE_FORMATS]:
            if paths := sorted(path for path in folder.glob(name) if path.is_file()):
                return tuple(paths)
    return ()


def _has_format(name: str) -> bool:
    return PurePath(name).suffix in {*_TABLE_FORMATS, ".txt"}


def open_table(located: LocatedSource) -> Table:
    """The table at the place found.

    Raises:
        TaskError: it cannot be read or fetched, is empty, or lacks a column.
    """
    source = located.source
    wanted = source.columns + source.optional_columns
    if located.origin == "hub":
        table = _from_hub(located, wanted)
    elif located.paths[0].suffix == ".parquet":
        table = _from_parquet(located, wanted)
    else:
        rows = [row for path in located.paths for row in _read_rows(path)]
        columns = tuple(rows[0]) if rows else ()
        table = Table(located.place, columns, len(rows), lambda indices: [rows[index] for index in indices])
    if table.size == 0:
        raise TaskError(f"{located.place}: empty; expected {located.columns}")
    missing = [column for column in source.columns if column not in table.columns]
    if missing:
        raise TaskError(
            f"{located.place}: no column {' and no '.join(missing)}; found {', '.join(map(str, table.columns))}; "
            f"expected {located.columns}"
        )
    return table


def _from_hub(located: LocatedSource, wanted: Sequence[str]) -> Table:
    import datasets  # type: ignore[import-untyped]

    source = located.source
    try:
        dataset: Any = datasets.load_dataset(source.hub, source.config, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(
            f"{located.place}: cannot be loaded ({reason}); check the network, or download the data set and give "
            f"its folder with --task-data"
        ) from error
    columns = tuple(dataset.column_names)
    dataset = dataset.select_columns([column for column in wanted if column in columns])
    return Table(located.place, columns, len(dataset), lambda indices: dataset.select(indices).to_list())


def _from_parquet(located: LocatedSource, wanted: Sequence[str]) -> Table:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        columns = tuple(pq.read_schema(located.paths[0]).names)
        kept = [column for column in wanted if column in columns]
        table: Any = pa.concat_tables([pq.read_table(path, columns=kept) for path in located.paths])
    except (pa.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(f"{located.place}: not a readable parquet file ({reason}); fetch it again") from error
    return Table(located.place, columns, table.num_rows, lambda indices: table.take(list(indices)).to_pylist())


def _read_rows(path: Path) -> list[dict[str, object]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".txt":
        return [{"book": path.stem, "snippet": "\n\n".join(part)} for part in passages(text, _PASSAGE_WORDS)]
    if path.suffix == ".csv":
        return _read_csv(path)
    return _read_json(path, text)


def _read_csv(path: Path) -> list[dict[str, object]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [dict(row) for row in csv.DictReader(stream, strict=True)]
    except csv.Error as error:
        raise TaskError(f"{path}: malformed CSV ({error}); quote the fields, or save it as JSON lines") from error


def _read_json(path: Path, text: str) -> list[dict[str, object]]:
    if text.lstrip().startswith("["):
        rows = _parse(text, str(path))
    else:
        # Not splitlines(): U+2028 may stand inside a string.
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path}: a row is no JSON object; expected one object per line, or a list of them")
    return rows  # type: ignore[no-any-return]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise TaskError(f"{where}: malformed JSON ({reason}); expected one object per line") from error

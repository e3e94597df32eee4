"""Where the rows of a task come from: files in a folder the operator gives, or the hub. No task is known in here.

A row is a plain mapping from column to value. Reading a table checks its columns; what a row must look like is the
business of whoever reads it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from sources.read import Row, SourceError, csv_rows, hub_dataset, json_values, parquet_table, read_text
from text.sentences import passages

_TABLE_FORMATS = (".jsonl", ".json", ".csv", ".parquet")
#: A book is read as passages of about this many words: 256 tokens, as in ECO's copyright experiments (section 4).
_PASSAGE_WORDS = 200


class TaskError(SourceError):
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
        SourceError: it cannot be read or fetched.
        TaskError: it is empty, or lacks a column.
    """
    source, place = located.source, located.place
    wanted = source.columns + source.optional_columns
    if located.origin == "hub":
        advice = "check the network, or download the data set and give its folder with --task-data"
        dataset = hub_dataset(str(source.hub), source.config, source.split, place, advice)
        columns = dataset.column_names
        dataset = dataset.select_columns([column for column in wanted if column in columns])
        table = Table(place, len(dataset), lambda indices: dataset.select(indices).to_list())
    elif located.paths[0].suffix == ".parquet":
        columns, arrow = parquet_table(located.paths, place, wanted)
        table = Table(place, arrow.num_rows, lambda indices: arrow.take(list(indices)).to_pylist())
    else:
        rows = [row for path in located.paths for row in _rows_of(path)]
        columns = list(rows[0]) if rows else []
        table = Table(place, len(rows), lambda indices: [rows[index] for index in indices])
    if table.size == 0:
        raise TaskError(f"{place}: empty; expected {located.columns}")
    missing = [column for column in source.columns if column not in columns]
    if missing:
        raise TaskError(
            f"{place}: no column {' and no '.join(missing)}; found {', '.join(map(str, columns))}; "
            f"expected {located.columns}"
        )
    return table


def _rows_of(path: Path) -> list[dict[str, object]]:
    text = read_text(path, str(path))
    if path.suffix == ".txt":
        return [{"book": path.stem, "snippet": "\n\n".join(part)} for part in passages(text, _PASSAGE_WORDS)]
    if path.suffix == ".csv":
        return csv_rows(text, str(path))
    rows = [row for _, row in json_values(text, str(path))]
    if not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path}: a row is no JSON object; expected one object per line, or a list of them")
    return rows

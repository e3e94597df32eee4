"""What a task is: its sources, the sets read from them row by row, and what must hold between the sets.

Rows come from files in a folder the operator gives, or from the hub; no task is known in here. A row is a plain mapping
from column to value. Reading a table checks its columns; what a row must look like is the business of whoever reads it.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from sources.examples import Example, ExampleFileError, check_disjoint, comparison_key, example_of
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
        rows: list[dict[str, object]] = []
        for path in located.paths:
            text = read_text(path, str(path))
            if path.suffix == ".txt":
                rows += ({"book": path.stem, "snippet": "\n\n".join(part)} for part in passages(text, _PASSAGE_WORDS))
            elif path.suffix == ".csv":
                rows += csv_rows(text, str(path))
            else:
                values = [value for _, value in json_values(text, str(path))]
                if not all(isinstance(value, dict) for value in values):
                    raise TaskError(f"{path}: a row is no JSON object; expected one object per line, or a list of them")
                rows += values
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


#: A row, and the words an error message names it by, to the examples in it.
Convert = Callable[[Row, str], Sequence[Example]]

#: Rows of a published data set that are no example (an empty title, an empty option) are passed over, and counted, up
#: to this share. Rows of an operator's own file never are.
_TOLERATED_SHARE = 0.01
_CHUNK_ROWS = 1024
TEST_SETS = ("forget_test", "retain_test", "neighbours", "general_test")


@dataclass(frozen=True)
class TaskData:
    """A task's examples. `forget` and `retain` are for training, calibration and search; the rest only judges."""

    forget: list[Example]
    retain: list[Example]
    forget_test: list[Example]
    """Must be flagged; none of its prompts is in `forget`."""
    retain_test: list[Example]
    """Must pass: more of what `retain` is made of."""
    neighbours: list[Example]
    """Must pass: what lies closest to the forget set without being part of it."""
    general_test: list[Example]
    """Must pass: anything else."""
    notes: tuple[str, ...] = ()
    """What was passed over or dropped, and how many."""

    def summary(self) -> str:
        """The sizes of the sets, and the notes; one line each."""
        names = ("forget", "retain", *TEST_SETS)
        sizes = [f"{name:<13}{len(getattr(self, name)):>8,} examples" for name in names]
        return "\n".join((*sizes, *self.notes))


@dataclass(frozen=True)
class Preset:
    """A task: its sources, what each set is made of in words, and the function that does it."""

    title: str
    sources: tuple[Source, ...]
    sets: Mapping[str, str]
    kept_out: str
    assemble: "Callable[[TaskReader], TaskData]"


class TaskReader:
    """Examples from the located sources of one task.

    Opens what lies in files at once, so that a wrong file is found before anything is fetched from the hub.
    """

    def __init__(self, sources: Sequence[LocatedSource], seed: int) -> None:
        self.notes: list[str] = []
        self._sources = {located.source.name: located for located in sources}
        self._seed = seed
        self._tables = {name: open_table(located) for name, located in self._sources.items() if located.paths}

    def has(self, name: str) -> bool:
        """False for an optional source that is not at hand."""
        return self._sources[name].origin not in ("left out", "missing")

    def is_own(self, name: str) -> bool:
        """Whether the operator wrote the file."""
        return self._sources[name].origin == "own"

    def random(self, purpose: str) -> np.random.Generator:
        """A generator of this purpose's own: adding one source to a task moves no draw of another."""
        return np.random.default_rng([self._seed, zlib.crc32(purpose.encode())])

    def table(self, name: str) -> Table:
        """The rows of a source as they are."""
        if name not in self._tables:
            self._tables[name] = open_table(self._sources[name])
        return self._tables[name]

    def groups(self, name: str, convert: Convert | None = None, by: str | None = None) -> dict[str, list[Example]]:
        """All examples of a source, by the value of column `by`, or all under ""."""
        groups: dict[str, list[Example]] = {}
        for row, examples in self._converted(name, self.table(name).rows(), convert):
            groups.setdefault(str(row[by]) if by else "", []).extend(examples)
        return groups

    def examples(self, name: str, convert: Convert | None = None) -> list[Example]:
        """All examples of a source, in its order; none where an optional source is not at hand."""
        return self.groups(name, convert).get("", []) if self.has(name) else []

    def sample(
        self,
        name: str,
        count: int,
        avoid: Set[str],
        convert: Convert | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Example]:
        """Up to `count` different examples drawn with the seed, none with a comparison key in `avoid`.

        `indices` are the rows to draw from (all, where None). Only as many rows as needed are read. How many of
        these were to be avoided is noted.
        """
        table = self.table(name)
        order = self.random(name).permutation(range(table.size) if indices is None else indices).tolist()
        drawn: list[Example] = []
        avoided, seen = 0, set(avoid)

        def rows() -> Iterator[tuple[str, Row]]:
            for start in range(0, len(order), _CHUNK_ROWS):
                if start and len(drawn) >= count:
                    return
                yield from table.at(order[start : start + _CHUNK_ROWS])

        for _, examples in self._converted(name, rows(), convert):
            for example in examples:
                key = comparison_key(example.prompt)
                avoided += key in avoid
                if key not in seen:
                    seen.add(key)
                    drawn.append(example)
        if avoided:
            self.notes.append(f"{table.place}: {avoided} dropped from what was drawn, they are in another set")
        return drawn[:count]

    def _converted(
        self, name: str, rows: Iterable[tuple[str, Row]], convert: Convert | None
    ) -> Iterator[tuple[Row, Sequence[Example]]]:
        """Each row with its examples. Of a published data set those that are none are passed over, and noted."""
        table, passed_over = self.table(name), 0
        first: ExampleFileError | None = None
        for where, row in rows:
            try:
                examples = [example_of(row, where)] if convert is None else convert(row, where)
            except ExampleFileError as error:
                if self.is_own(name):
                    raise TaskError(str(error)) from error
                passed_over += 1
                first = first or error
                examples = ()
            yield row, examples
        if first is None:
            return
        if passed_over > _TOLERATED_SHARE * table.size:
            raise TaskError(
                f"{table.place}: {passed_over} of {table.size} rows are no examples, the first: {first}"
            ) from first
        self.notes.append(f"{table.place}: {passed_over} of {table.size} rows passed over, the first: {first}")


def keys_of(*sets: Sequence[Example]) -> set[str]:
    """The comparison keys of all prompts of some sets."""
    return {comparison_key(example.prompt) for examples in sets for example in examples}


def finished(data: TaskData) -> TaskData:
    """The task with everything dropped that may not be where it is, and a note for each drop.

    A test question is in no training set. What is to be forgotten counts in no test as something that must pass.

    Raises:
        ExampleFileError: a prompt is in both forget and retain (listed).
        TaskError: one of these sets is empty.
    """
    notes = list(data.notes)
    sets: dict[str, list[Example]] = {name: getattr(data, name) for name in ("forget", "retain", *TEST_SETS)}

    def drop(names: Sequence[str], keys: Set[str], reason: str) -> None:
        for name in names:
            kept = [example for example in sets[name] if comparison_key(example.prompt) not in keys]
            if len(kept) < len(sets[name]):
                notes.append(f"{name}: {len(sets[name]) - len(kept)} of {len(sets[name])} dropped, they {reason}")
            sets[name] = kept

    drop(TEST_SETS[1:], keys_of(data.forget_test), "must be flagged in forget_test")
    drop(("forget", "retain"), keys_of(*(sets[name] for name in TEST_SETS)), "are test questions")
    for name in ("forget", "retain"):
        if not sets[name]:
            raise TaskError(f"the {name} set is empty; {'; '.join(notes) or 'give more rows'}")
    check_disjoint(sets["forget"], sets["retain"])
    return TaskData(**sets, notes=tuple(notes))

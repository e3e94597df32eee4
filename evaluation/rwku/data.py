"""RWKU's files: the people's rows of each set, from its data set on the hub, a folder in its layout, or a table.

Configurations of the hub's data set jinzhuoran/RWKU and the files behind them are those of its card and of
`process/data_process.py` in its public code, which makes a folder for each person of them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapidfuzz import process

from evaluation.errors import DataError
from evaluation.rows import read_rows, sample_file
from sources import HUB_PREFIX, Row

_HUB: Final = f"{HUB_PREFIX}jinzhuoran/RWKU"
_PROBE_COLUMNS: Final = ("subject", "query", "answer", "type")
#: Set, by the hub's name of its configuration -> its file.
FILES: Final[Mapping[str, str]] = {
    "forget_level1": "forget_level1.json",
    "forget_level2": "forget_level2.json",
    "forget_level3": "forget_level3.json",
    "neighbor_level1": "neighbor_level1.json",
    "neighbor_level2": "neighbor_level2.json",
    "mia_forget": "forget_mia.json",
    "mia_retain": "retain_mia.json",
    "utility_general": "retain_mmlu.json",
    "utility_reason": "retain_bbh.json",
    "utility_truthfulness": "truthful.json",
    "utility_factuality": "triviaqa.json",
    "utility_fluency": "fluency.json",
}
SETS: Final = tuple(FILES)
LEVELS: Final = tuple(name for name in SETS if "level" in name)
MEMBERSHIP: Final = tuple(name for name in SETS if name.startswith("mia"))
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(LEVELS, _PROBE_COLUMNS),
    **dict.fromkeys(MEMBERSHIP, ("subject", "text")),
    "utility_general": ("subject", "question", "choices", "answer", "task", "examples"),
    "utility_reason": ("subject", "question", "cot", "answer"),
    "utility_truthfulness": ("subject", "question", "mc1_targets", "mc2_targets"),
    "utility_factuality": ("subject", "question", "answers"),
    "utility_fluency": ("subject", "instruction"),
}
_SPLIT: Final = "split"
#: Tables that a folder may hold instead of RWKU's files.
_TABLES: Final = ("*.jsonl", "*.parquet", "*.csv")
_NEAR: Final = 3

Rows = Mapping[str, Sequence[tuple[str, Row]]]
"""Set -> where each row stands, as error messages open, and the row."""


def load_rows(
    data: str | None, *, sets: Sequence[str] = (), without: Collection[str] = (), subjects: Sequence[str] = ()
) -> Rows:
    """The rows of each set, in the order of `SETS`.

    Args:
        data: None: the hub; "sample": what comes with the project; a folder with RWKU's files, or with folders of
            them, one for each person; or a table, or a folder of tables, whose column `split` names the set.
        sets: of `SETS`; none: all that the data have, but those of `without`.
        subjects: the people whose rows are taken, by their names in the column `subject`; none: all.

    Raises:
        DataError: the data cannot be read, a set or person is not in them, or a set has no row of the people.
    """
    if unknown := [name for name in sets if name not in SETS]:
        raise DataError(f"--sets: {unknown[0]!r} is none of {', '.join(SETS)}")
    found = _read(data, sets or [name for name in SETS if name not in without])
    where = f"--data: {data or _HUB}"
    if missing := [name for name in sets if name not in found]:
        there = ", ".join(found) or "none"
        raise DataError(f"{where}: {missing[0]}: not in these data; of the sets asked for they have {there}")
    if not found:
        example = FILES["forget_level1"]
        raise DataError(f"{where}: holds none of the sets that are asked for; give a folder with {example} and so on")
    people = dict.fromkeys(subject_of(row, at) for rows in found.values() for at, row in rows)
    for name in subjects:
        if name not in people:
            near = ", ".join(str(one) for one, *_ in process.extract(name, list(people), limit=_NEAR))
            raise DataError(f"--subject: {name!r} is none of the {len(people)} people there are; did you mean {near}?")
    chosen = {}
    for name in SETS:
        if name not in found:
            continue
        mine = [(at, row) for at, row in found[name] if not subjects or row["subject"] in subjects]
        if not mine:
            whose = f" of {', '.join(subjects)}" if subjects else ""
            raise DataError(f"{where}: {name}: no row{whose}; leave the set out: name the others with --sets")
        chosen[name] = mine
    return chosen


def subject_of(row: Row, where: str) -> str:
    """Raises `DataError` where a row does not say whose it is."""
    subject = row.get("subject")
    if not isinstance(subject, str) or not subject.strip():
        raise DataError(f"{where}: subject: expected the person's name, found {subject!r:.40}")
    return subject


def _read(data: str | None, wanted: Sequence[str]) -> dict[str, list[tuple[str, Row]]]:
    """The wanted sets of those that there are."""
    if data is None:
        return {name: _rows(f"{_HUB}:{name}:test", name) for name in wanted}
    if data == "sample" and not Path(data).exists():
        data = str(Path(sample_file("rwku", FILES["forget_level1"])).parent)
    place = Path(data).expanduser()
    if not place.is_dir():
        return _of_table([data], wanted)
    found = {name: [row for file in _files(place, name) for row in _rows(str(file), name)] for name in wanted}
    if not any(found.values()) and (tables := sorted(file for form in _TABLES for file in place.glob(form))):
        return _of_table([str(file) for file in tables], wanted)
    return {name: rows for name, rows in found.items() if rows}


def _rows(source: str, name: str) -> list[tuple[str, Row]]:
    return list(read_rows(source, name="data", columns=COLUMNS[name]))


def _files(folder: Path, name: str) -> Iterator[Path]:
    """A set's file in the folder, or else those in the folders of single people below it."""
    own = folder / FILES[name]
    yield from [own] if own.is_file() else sorted(folder.glob(f"*/{FILES[name]}"), key=_number)


def _number(file: Path) -> tuple[int, str]:
    """Of a person's folder: "10_…" comes after "9_…"."""
    number = file.parent.name.partition("_")[0]
    return int(number) if number.isdecimal() else 0, file.parent.name


def _of_table(sources: Sequence[str], wanted: Sequence[str]) -> dict[str, list[tuple[str, Row]]]:
    columns = dict.fromkeys([_SPLIT, *(column for name in wanted for column in COLUMNS[name])])
    found: defaultdict[str, list[tuple[str, Row]]] = defaultdict(list)
    for source in sources:
        for where, row in read_rows(source, name="data", columns=columns):
            if row.get(_SPLIT) not in SETS:
                raise DataError(f"{where}: {_SPLIT}: {row.get(_SPLIT)!r:.40} is none of {', '.join(SETS)}")
            if row[_SPLIT] in wanted:
                found[str(row[_SPLIT])].append((where, row))
    return dict(found)


@dataclass(frozen=True, slots=True)
class Columns:
    """A row whose columns are read with an error that names them."""

    row: Row
    where: str

    def text(self, column: str) -> str:
        return self._checked(column, self.row.get(column))

    def texts(self, column: str, *, lone: bool = False) -> tuple[str, ...]:
        """A list of texts; with `lone` one text is a list too."""
        value = self.row.get(column)
        if lone and isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not value:
            raise DataError(f"{self.where}: {column}: expected a list of texts, found {_shown(value)}")
        return tuple(self._checked(column, one) for one in value)

    def inside(self, column: str) -> "Columns":
        """The columns of one that is a mapping."""
        value = self.row.get(column)
        if not isinstance(value, Mapping):
            raise DataError(f"{self.where}: {column}: expected a mapping, found {_shown(value)}")
        return Columns(value, f"{self.where}: {column}")

    def examples(self, column: str) -> "list[Columns]":
        value = self.row.get(column)
        if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
            raise DataError(f"{self.where}: {column}: expected a list of questions, found {_shown(value)}")
        return [Columns(one, f"{self.where}: {column}: {number}") for number, one in enumerate(value, 1)]

    def number(self, column: str, below: int) -> int:
        value = self.row.get(column)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise DataError(f"{self.where}: {column}: expected a number from 0 to {below - 1}, found {_shown(value)}")
        return value

    def _checked(self, column: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip(" \n\t."):
            raise DataError(f"{self.where}: {column}: expected a text with a word, found {_shown(value)}")
        return value


def _shown(value: object) -> str:
    return "none" if value is None else f"{type(value).__name__} {str(value)[:20]!r}"

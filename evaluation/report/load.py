"""Run folders as they are read: `run.json`, `scores.jsonl`, `answers.jsonl`. Nothing is trusted, nothing is changed."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from console.errors import first_problem
from evaluation.errors import EvaluationError
from evaluation.replies import AnswerProtocol
from evaluation.runs.record import ANSWERS, FORMAT, RUN, SCORES, Kind, protocol_of
from evaluation.suite import Answer, Score

#: Control characters and half surrogate pairs, which neither XML nor UTF-8 can hold.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class ReportError(EvaluationError):
    """Runs that cannot stand in one report, or a folder that cannot be written; one line that says what to do."""


Number = Annotated[
    float | None, AfterValidator(lambda value: value if value is not None and math.isfinite(value) else None)
]


class _Record(BaseModel):
    """Keys that are not known are left alone: the format's number says what a reader must know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FigureRecord(_Record):
    """A figure of the table; `value` is None where it is not a finite number, and `note` says why."""

    name: str
    value: Number
    n: int = Field(ge=0)
    low: Number = None
    high: Number = None
    note: str = ""


class ReferenceRecord(_Record):
    """The run whose scores stand for a model that never learned."""

    label: str
    run: str | None = None


class CheckedRecord(_Record):
    """`run.json` of a finished run (see `evaluation.runs.record.RunRecord`), checked field by field."""

    suite: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")  # files are named after it
    label: str = Field(min_length=1)
    kind: Kind
    method: str | None = None
    strength: Number = None
    target: dict[str, Any] = {}
    suite_settings: dict[str, Any] = {}
    draws: int = Field(default=1, ge=1)
    protocol: AnswerProtocol | None = None
    reference: ReferenceRecord | None = None
    started: str = ""
    finished: str
    versions: dict[str, Any] = {}
    figures: tuple[FigureRecord, ...]
    headline: tuple[str, ...] = ()
    directions: dict[str, Literal["up", "down"]] = {}


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run.

    Attributes:
        folder: the last part of its path; the path itself is nobody's business.
        record: see `CheckedRecord`.
        scores: of all examples and draws.
        answers: to read; empty where the suite keeps none.
    """

    folder: str
    record: CheckedRecord
    scores: tuple[Score, ...]
    answers: tuple[Answer, ...]

    @property
    def label(self) -> str:
        return named(self.record.label)

    @property
    def figures(self) -> Mapping[str, FigureRecord]:
        return {figure.name: figure for figure in self.record.figures}

    @property
    def kind_name(self) -> str:
        """A method's name, or what kind of run it is."""
        names = {"retain": "retain model", "method": "trained"}
        return self.record.method or names.get(self.record.kind, self.record.kind)

    @property
    def tag(self) -> str:
        """What stands below its label: kind, where the label is not the kind itself, strength, and protocol."""
        kind = "" if self.label.casefold() == self.kind_name.casefold() else self.kind_name
        strength = "" if self.record.strength is None else f"strength {self.record.strength:g}"
        answers = "" if self.record.protocol is None else f"answers {self.record.protocol}"
        return " · ".join(part for part in (kind, strength, answers) if part)

    @property
    def model(self) -> str:
        """The target's model, as the target names it; only the last part of a folder's path."""
        model = self.record.target.get("model", "")
        text = str(model) if model is not None else ""
        return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", "~", ".")) else text

    def value(self, name: str) -> float | None:
        """Of a figure; None where it was not measured or is no finite number."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value


_T = TypeVar("_T")


def named(label: str) -> str:
    """A label for people: of a server's address what tells it from others."""
    address = urlsplit(label)
    if address.scheme not in ("http", "https") or not address.netloc or len(label.split()) > 1:
        return label
    path = address.path.rstrip("/").removesuffix("/v1")
    return f"server {address.netloc.rpartition('@')[2]}{path}"


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, in their order.

    Raises:
        ReportError: none is given; see `load_run`.
    """
    if not folders:
        raise ReportError("RUN: no run folder is given; name those that eco evaluate has written")
    return [load_run(folder) for folder in folders]


def load_run(folder: str | Path) -> Run:
    """One finished run.

    Raises:
        ReportError: the folder holds no run, an unfinished one or one of an unknown format, or a file is damaged.
    """
    folder = Path(folder)
    path = folder / RUN
    if not path.is_file():
        raise ReportError(f"{folder}: holds no {RUN}; name a folder that eco evaluate has written")
    try:
        raw = json.loads(_text(path))
    except ValueError as error:
        raise ReportError(f"{path}: is not JSON ({error}); run it again") from error
    if not isinstance(raw, dict) or "format" not in raw:
        raise ReportError(
            f"{path}: format: missing, so it is no evaluation; name a folder that eco evaluate has written"
        )
    if raw["format"] != FORMAT:
        raise ReportError(
            f"{path}: format: is {raw['format']!r}, and only {FORMAT} is known; use the version that wrote it"
        )
    if raw.get("finished") is None:
        raise ReportError(f"{path}: finished: the run was interrupted; finish it with the same eco evaluate command")
    try:
        record = CheckedRecord.model_validate(_printable({**raw, "protocol": protocol_of(raw)}))
    except ValidationError as error:
        raise ReportError(f"{path}: {first_problem(error)}; run it again") from error
    scores = tuple(_lines(folder / SCORES, Score))
    if not all(math.isfinite(score.value) for score in scores):
        raise ReportError(f"{folder / SCORES}: value: is not a finite number everywhere; run it again")
    answers = tuple(_lines(folder / ANSWERS, Answer)) if (folder / ANSWERS).exists() else ()
    return Run(folder.resolve().name, record, scores, answers)


def _lines(path: Path, kind: type[_T]) -> Iterator[_T]:
    adapter = TypeAdapter(kind)
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield adapter.validate_python(_printable(json.loads(line)))
        except ValidationError as error:
            raise ReportError(f"{path}:{number}: {first_problem(error, 'line')}; run it again") from error
        except ValueError as error:
            raise ReportError(f"{path}:{number}: is not JSON ({error}); run it again") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); name a complete run folder") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: is not UTF-8 text; run it again") from error


def _printable(value: Any) -> Any:
    """JSON with every text fit for XML; answers come from models and hold anything."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value

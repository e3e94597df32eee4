"""The trajectory of a corruption search: JSON lines, a header and then one line per evaluation.

Every line is on the disk before the search goes on, so a search that was killed at any moment can be resumed. The
header says what the evaluations are evaluations of; a trajectory of anything else is refused.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from console.errors import EcoError
from corruption import CorruptionSpec

__all__ = ["Evaluation", "Phase", "SearchError", "Trajectory"]

Phase = Literal["screen", "sweep", "refine", "vector"]
"""screen: on a part of the examples, with the first noise seed alone. All others: on everything."""

_FORMAT = 2


class SearchError(EcoError):
    """A search cannot start or go on; one line that says what to change."""


class Evaluation(BaseModel):
    """One corruption that was measured: `Measurement`, with what was measured, when and why."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    index: Annotated[int, Field(ge=0)]
    phase: Phase
    spec: CorruptionSpec
    noise_seeds: tuple[int, ...]
    value: float
    distance: Annotated[float, Field(ge=0)]
    gap: float
    standard_error: Annotated[float, Field(ge=0)]
    gibberish: Annotated[float, Field(ge=0)]
    forward_passes: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    elapsed_s: Annotated[float, Field(ge=0)]
    """Time spent searching when it was done, interruptions not counted."""


class Trajectory:
    """An open trajectory file. No two searches can have the same one open.

    Attributes:
        recorded: the evaluations that were in it when it was opened, in order.
    """

    def __init__(self, stream: IO[bytes], recorded: tuple[Evaluation, ...]) -> None:
        self._stream = stream
        self.recorded = recorded

    @classmethod
    def open(
        cls, path: str | Path, identity: Mapping[str, Mapping[str, object]], *, resume: bool, overwrite: bool
    ) -> Self:
        """Start a trajectory, or take one up where it stops.

        Args:
            identity: what makes two searches the same one: JSON values, in named groups.
            resume: read what is there (nothing is fine too). A last line that was torn by a kill is dropped.
            overwrite: discard what is there.

        Raises:
            SearchError: the file exists and neither flag is given, or it is in use, damaged, of another search, or
                cannot be written.
        """
        path = Path(path)
        if resume and overwrite:
            raise SearchError("resume, overwrite: give one of them; a trajectory is taken up or discarded")
        header = _header(identity)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b" if resume or overwrite else "x+b")
        except FileExistsError as error:
            raise SearchError(f"{path}: already exists; resume it, overwrite it, or choose another file") from error
        except OSError as error:
            raise SearchError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            _lock(stream, path)
            stream.seek(0)
            recorded = _recorded(stream, header, path) if resume else ()
            if stream.tell() == 0:
                stream.truncate()
                _write_line(stream, header)
        except BaseException:
            stream.close()
            raise
        return cls(stream, recorded)

    def append(self, evaluation: Evaluation) -> None:
        """Write one line, and return when it is on the disk."""
        _write_line(self._stream, evaluation.model_dump(mode="json"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()


def _header(identity: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    try:
        text = json.dumps(identity, sort_keys=True, allow_nan=False, default=dict)
    except (TypeError, ValueError) as error:
        raise SearchError(f"objective: describe() gives what JSON cannot hold ({error})") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"trajectory": _FORMAT, "digest": digest, **json.loads(text)}


def _lock(stream: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SearchError(f"{path}: another search is writing it; wait for it or choose another file") from error


def _write_line(stream: IO[bytes], data: Mapping[str, Any]) -> None:
    stream.write(json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def _recorded(stream: IO[bytes], header: Mapping[str, Any], path: Path) -> tuple[Evaluation, ...]:
    """The evaluations in the file, with the stream left at the end of its last whole line."""
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    stream.truncate(whole)
    stream.seek(whole)
    lines = content[:whole].split(b"\n")[:-1]
    if not lines:
        return ()
    _check_header(lines[0], header, path)
    return tuple(_parse(line, index, path) for index, line in enumerate(lines[1:]))


def _check_header(line: bytes, header: Mapping[str, Any], path: Path) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("trajectory") != _FORMAT:
        raise SearchError(f"{path}: not a trajectory of this version of eco; overwrite it or choose another file")
    if found.get("digest") != header["digest"]:
        raise SearchError(
            f"{path}: is of another search ({_first_difference(found, header)}); "
            "give the same again, overwrite it or choose another file"
        )


def _first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for group, fields in wanted.items():
        theirs = found.get(group)
        if not isinstance(fields, dict) or not isinstance(theirs, dict):
            continue
        for name in sorted({*fields, *theirs}):
            if fields.get(name) != theirs.get(name):
                return f"{group}.{name} is {theirs.get(name)!r} there and {fields.get(name)!r} here"
    return "its digest differs"


def _parse(line: bytes, index: int, path: Path) -> Evaluation:
    try:
        evaluation = Evaluation.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"{field}: {first['msg']}" if field else first["msg"]
        raise SearchError(f"{path}:{index + 2}: {what}; the file is damaged, overwrite it") from error
    if evaluation.index != index:
        raise SearchError(f"{path}:{index + 2}: index: expected {index}, found {evaluation.index}; overwrite the file")
    return evaluation

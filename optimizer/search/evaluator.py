"""Measuring within a budget: each corruption once, on the record before the search goes on, and never twice.

The record is the trajectory: JSON lines, a header and then one line per evaluation. Every line is on the disk before
the search goes on, so a search that was killed at any moment can be resumed, and takes the same decisions. The header
says what the evaluations are evaluations of; a trajectory of anything else is refused.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from console.errors import first_problem
from corruption import CorruptionSpec
from optimizer.errors import SearchError
from optimizer.search.space import Measurement, Objective, SearchSettings, label_of

Phase = Literal["screen", "sweep", "refine", "vector"]
"""screen: on a part of the examples, with the first noise seed alone. All others: on everything."""

_FORMAT = 3


class BudgetSpentError(SearchError):
    """No further evaluation fits the budget; the message says which budget."""


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
    two_sided: bool
    elapsed_s: Annotated[float, Field(ge=0)]
    """Time spent searching when it was done, interruptions not counted."""


OnEvaluation = Callable[[Evaluation, int, int], None]
"""Called after each evaluation with it, how many are done, and about how many there will be."""


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
        try:
            text = json.dumps(identity, sort_keys=True, allow_nan=False, default=dict)
        except (TypeError, ValueError) as error:
            raise SearchError(f"objective: describe() gives what JSON cannot hold ({error})") from error
        digest = hashlib.sha256(text.encode()).hexdigest()
        header = {"trajectory": _FORMAT, "digest": digest, **json.loads(text)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b" if resume or overwrite else "x+b")
        except FileExistsError as error:
            raise SearchError(f"{path}: already exists; resume it, overwrite it, or choose another file") from error
        except OSError as error:
            raise SearchError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SearchError(
                    f"{path}: another search is writing it; wait for it or choose another file"
                ) from error
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

    def close(self) -> None:
        self._stream.close()


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
    try:
        theirs = json.loads(lines[0])
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict) or theirs.get("trajectory") != _FORMAT:
        raise SearchError(f"{path}: not a trajectory of this version of eco; overwrite it or choose another file")
    if theirs.get("digest") != header["digest"]:
        raise SearchError(
            f"{path}: is of another search ({_first_difference(theirs, header)}); "
            "give the same again, overwrite it or choose another file"
        )
    evaluations = []
    for index, line in enumerate(lines[1:]):
        where = f"{path}:{index + 2}"
        try:
            evaluation = Evaluation.model_validate_json(line)
        except ValidationError as error:
            what = first_problem(error).removeprefix("contents: ")
            raise SearchError(f"{where}: {what}; the file is damaged, overwrite it") from error
        if evaluation.index != index:
            raise SearchError(f"{where}: index: expected {index}, found {evaluation.index}; overwrite the file")
        evaluations.append(evaluation)
    return tuple(evaluations)


def _first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    for group, fields in ours.items():
        others = theirs.get(group)
        if not isinstance(fields, dict) or not isinstance(others, dict):
            continue
        for name in sorted({*fields, *others}):
            if fields.get(name) != others.get(name):
                return f"{group}.{name} is {others.get(name)!r} there and {fields.get(name)!r} here"
    return "its digest differs"


_Key = tuple[CorruptionSpec, bool]
"""What is measured, and whether on a part of the examples only."""


def _key(spec: CorruptionSpec, phase: Phase) -> _Key:
    return spec, phase == "screen"


class Evaluator:
    """Measures corruptions, all with the same noise seeds (common random numbers).

    A corruption may be measured on a part of the examples (phase "screen") and on all of them; these are two
    measurements.

    Args:
        objective: measures.
        screen: measures on a part of the examples; None: there is no part.
        settings: noise seeds and budgets.
        trajectory: where evaluations are recorded, and read from where it has them; None: nowhere.
        expected: how many evaluations the search is about to ask for, for the progress.
        on_evaluation: told of each evaluation, those read from the trajectory included.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        objective: Objective,
        screen: Objective | None,
        settings: SearchSettings,
        trajectory: Trajectory | None,
        expected: int,
        on_evaluation: OnEvaluation | None,
        clock: Callable[[], float],
    ) -> None:
        self._objective = objective
        self._screen = screen
        self._settings = settings
        self._trajectory = trajectory
        self._recorded = {_key(e.spec, e.phase): e for e in trajectory.recorded} if trajectory else {}
        self._expected = expected
        self._on_evaluation = on_evaluation
        self._clock = clock
        self._counted_from = clock()
        self._elapsed_before_s = 0.0
        self._done: dict[_Key, Evaluation] = {}
        # A line's number in the file, which may hold what this run does not come to ask for, or asks for later.
        self._next_index = len(self._recorded)

    @property
    def everything(self) -> tuple[Evaluation, ...]:
        """All evaluations, in order."""
        return tuple(self._done.values())

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those on all examples, in order."""
        return tuple(e for e in self._done.values() if e.phase != "screen")

    @property
    def screened(self) -> tuple[Evaluation, ...]:
        """Those on a part of the examples, in order."""
        return tuple(e for e in self._done.values() if e.phase == "screen")

    def measure(self, specs: Sequence[CorruptionSpec], phase: Phase, *, overdrawn: bool = False) -> list[Evaluation]:
        """Measure in one call of the objective, and return in the order given. What was measured before costs nothing.

        Screening leaves one evaluation of the budget to what follows. `overdrawn` measures whatever the seconds spent.

        Raises:
            BudgetSpentError: not all that is new fits the budget; none of it was measured.
            SearchError: the objective gives what is not a measurement.
        """
        new = [spec for spec in dict.fromkeys(specs) if _key(spec, phase) not in self._done]
        if new and not overdrawn:
            most, limit_s = self._settings.budget_evaluations, self._settings.budget_s
            if most is not None and len(self._done) + len(new) + (phase == "screen") > most:
                raise BudgetSpentError(f"the budget of {most} evaluations is spent")
            if limit_s is not None and self._elapsed_s() >= limit_s:
                raise BudgetSpentError(f"the budget of {limit_s:g} s is spent")
        measured: dict[CorruptionSpec, Measurement] = {}
        if any(_key(spec, phase) not in self._recorded for spec in new):
            # All of them, even if some are on record: the rest must be measured in the company it would have had.
            if phase == "screen":
                assert self._screen is not None
                numbers = self._screen.measure(new, self._settings.noise_seeds[:1])
            else:
                numbers = self._objective.measure(new, self._settings.noise_seeds)
            if len(numbers) != len(new):
                raise SearchError(f"objective: measure() gave {len(numbers)} measurements for {len(new)} corruptions")
            measured = dict(zip(new, numbers, strict=True))
        for spec, measurement in measured.items():
            for name, number in asdict(measurement).items():
                if not math.isfinite(number) or (number < 0 and name not in {"value", "gap"}):
                    raise SearchError(f"objective: {name} is {number} for {label_of(spec)}; the search cannot go by it")
        for spec in new:
            evaluation = self._recorded.get(_key(spec, phase))
            if evaluation is None:
                evaluation = self._record(spec, measured[spec], phase)
            else:
                self._elapsed_before_s, self._counted_from = evaluation.elapsed_s, self._clock()
            self._done[_key(spec, phase)] = evaluation
            if self._on_evaluation is not None:
                self._on_evaluation(evaluation, len(self._done), max(self._expected, len(self._done)))
        return [self._done[_key(spec, phase)] for spec in specs]

    def _record(self, spec: CorruptionSpec, measurement: Measurement, phase: Phase) -> Evaluation:
        evaluation = Evaluation(
            index=self._next_index,
            phase=phase,
            spec=spec,
            noise_seeds=self._settings.noise_seeds[: 1 if phase == "screen" else None],
            elapsed_s=self._elapsed_s(),
            **asdict(measurement),
        )
        if self._trajectory is not None:
            self._trajectory.append(evaluation)
        self._next_index += 1
        return evaluation

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + self._clock() - self._counted_from

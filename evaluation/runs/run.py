"""One run: a suite, a target and a folder. Interrupted, the same command goes on; finished, it asks nothing again."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from console.progress import shown_progress
from evaluation.errors import RunError
from evaluation.intervals import mean_figures
from evaluation.replies import Asker, ForeseenTarget, Target, all_needs
from evaluation.runs.record import (
    ANSWERS,
    REPLIES,
    RUN,
    SCORES,
    CachedAsker,
    Kind,
    ReplyStore,
    RunRecord,
    read_record,
    read_scores,
)
from evaluation.suite import Answer, Score, Suite

_LOCK = ".lock"

MakeSuite = Callable[[Callable[[Target], Asker]], Suite]
"""Builds a suite. Takes what makes an asker of a further model (a judge, a reference), cached in its folder."""


@dataclass(frozen=True)
class RunOptions:
    """How a suite is run.

    Attributes:
        out: the run's folder.
        label: its row in a table.
        kind, method, strength: what sort of row it is.
        draws: noise draws; more than 1 needs a target that applies policies itself.
        reference: the folder of the retain model's run of the same suite.
        force: whether a folder that holds another run is emptied.
    """

    out: Path
    label: str
    kind: Kind = "other"
    method: str | None = None
    strength: float | None = None
    draws: int = 1
    reference: Path | None = None
    force: bool = False


def run_suite(make: MakeSuite, target: Target, options: RunOptions, console: Console) -> RunRecord:
    """Measure, write the folder, and return its record.

    Data and reference are checked before the target is asked for anything, a description too: one that loads its model
    then has loaded nothing. The target is checked before it is asked: what a suite needs and a target lacks is an error
    at once.

    Raises:
        EvaluationError: data, target or folder cannot be used. What was answered is kept.
    """
    folder = options.out
    check_folder(folder)
    with shown_progress(console) as show:
        store = ReplyStore(folder / REPLIES)
        suite = make(lambda other: CachedAsker(other, store, on_reply=show))
        probe = suite.probe()
        record = RunRecord(
            suite=suite.name,
            label=options.label,
            kind=options.kind,
            method=options.method,
            strength=options.strength,
            target={},
            suite_settings=dict(suite.describe()),
            draws=options.draws,
            started=now(),
            headline=tuple(suite.headline),
            directions=dict(suite.directions),
            protocol=target.protocol if "logprobs" in all_needs(probe) else None,
        )
        reference, reference_scores = None, None
        if options.reference is not None:
            reference, reference_scores = _read_reference(options.reference, record)
            record = replace(record, reference={"label": reference.label, "run": options.reference.name})
            if isinstance(target, ForeseenTarget):
                _check_models(options.reference, reference, target.foreseen())
        record = replace(record, target=dict(target.describe()))
        if options.reference is not None and reference is not None:
            _check_models(options.reference, reference, record.target)
        before = read_record(folder) if not options.force and (folder / RUN).is_file() else None
        # Unless it failed before it asked anything.
        if before is not None and (before.finished is not None or (folder / REPLIES).is_file()):
            if before.identity != record.identity:
                different = ", ".join(_differing(before.identifying_parts, record.identifying_parts))
                raise RunError(
                    f"--out: {folder} holds a run of another target, suite or setting ({before.suite}, {before.label}: "
                    f"{different} differ); choose another folder, or --force to replace it"
                )
            record = replace(record, started=before.started)
        target.check(probe)
        with locked(folder):
            if options.force:
                clear_folder(folder)
            store.load()
            record.write(folder)
            scores: list[Score] = []
            answers: tuple[Answer, ...] = ()  # of the first draw
            for draw in range(options.draws):
                outcome = suite.measure(CachedAsker(target, store, draw=draw, on_reply=show))
                scores += [replace(score, draw=draw) for score in outcome.scores]
                answers = outcome.answers if draw == 0 else answers
            own = suite.figures(scores, reference_scores)
            names = {figure.name for figure in own}
            means = [figure for figure in mean_figures(scores, suite.unbounded_metrics) if figure.name not in names]
            record = replace(record, figures=(*own, *means), finished=now())
            record.write(folder, scores, answers)
    return record


def _read_reference(folder: Path, run: RunRecord) -> tuple[RunRecord, list[Score]]:
    """The record and scores of the retain model's run that `run` is compared with.

    Raises:
        RunError: it is no finished run, or one of another suite, of other questions, or with answers scored otherwise.
    """
    try:
        record, scores = read_record(folder), read_scores(folder)
    except RunError as error:
        raise RunError(f"--retain-run: {error}") from error
    if record.suite != run.suite:
        raise RunError(f"--retain-run: {folder} is a run of {record.suite}; give one of {run.suite}")
    if different := _differing(run.suite_settings, record.suite_settings):
        raise RunError(
            f"--retain-run: {folder} was measured on other questions or settings ({', '.join(different)} differ); "
            "evaluate the retain model with the same options"
        )
    if run.protocol and record.protocol and run.protocol != record.protocol:
        raise RunError(
            f"--retain-run: {folder} was scored with --answers {record.protocol}, this run is with {run.protocol}; "
            "evaluate the retain model with the same, or offline without a policy, which goes with all"
        )
    return record, scores


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted names of what is not the same in two mappings: "data.forget.sha256"."""
    found: list[str] = []
    for name in sorted({*one, *other}):
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += [f"{name}.{below}" for below in _differing(mine, theirs)]
        elif json.dumps(mine, sort_keys=True) != json.dumps(theirs, sort_keys=True):
            found.append(name)
    return found


def _check_models(folder: Path, record: RunRecord, target: Mapping[str, object]) -> None:
    """Raise `RunError` where a retain model's run is of a model with another tokenizer, or of the very model that is
    evaluated."""
    tokenizers = {target.get("tokenizer_sha256"), record.target.get("tokenizer_sha256")}
    if all(tokenizers) and len(tokenizers) > 1:
        raise RunError(
            f"--retain-run: {folder} is of a model with another tokenizer; give a retain model of the same family"
        )
    if target.get("weights_sha256") and target["weights_sha256"] == record.target.get("weights_sha256"):
        raise RunError(
            f"--retain-run: {folder} is of the very model that is evaluated; give the run of one that never learned"
        )


def check_folder(folder: Path) -> None:
    """Whether a run may be written to a folder.

    Raises:
        RunError: it is a file, or holds something that is no run.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out: {folder} is a file; give a folder")
    if not folder.is_dir():
        return
    try:  # other commands leave a `run.json` too: it takes more than the name
        read_record(folder)
    except RunError as error:
        is_run = not (folder / RUN).exists() and (folder / REPLIES).is_file()
        if not is_run and any(path.name != _LOCK for path in folder.iterdir()):
            raise RunError(f"--out: {folder} holds something that is no run; choose another folder") from error


def clear_folder(folder: Path) -> None:
    """Remove an earlier run's files, and nothing else."""
    for name in (RUN, SCORES, ANSWERS, REPLIES):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where there is none, for this process alone while the block runs.

    Raises:
        RunError: another process has it, or the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK, timeout=0):
            yield
    except Timeout as error:
        raise RunError(f"--out: {folder}: another process is writing this run; wait for it") from error
    except OSError as error:
        raise RunError(f"--out: {folder}: cannot be written ({error.strerror})") from error


def now() -> str:
    """UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def show_run(record: RunRecord, folder: Path | None, console: Console) -> None:
    """Print the headline figures with n and 95 % intervals, and the folder that has the rest; None: none has."""
    by_name = {figure.name: figure for figure in record.figures}
    headline = [by_name[name] for name in record.headline if name in by_name] or list(record.figures)
    table = Table("figure", "value", "95 % interval", "n", title=escape(f"{record.suite}: {record.label}"))
    for column in table.columns[1:]:
        column.justify = "right"
    for figure in headline:
        interval = ""
        if figure.low is not None and figure.high is not None:
            interval = f"{_number(figure.low)} to {_number(figure.high)}"
        table.add_row(figure.name, _number(figure.value), interval, str(figure.n))
    console.print(table)
    lines = [f"{figure.name}: {figure.note}" for figure in headline if figure.note]
    if record.protocol is not None:
        lines.append(f"given answers were scored with --answers {record.protocol}")
    if folder is not None:
        lines.append(f"{len(record.figures)} figures, scores and answers in {folder}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _number(value: float) -> str:
    """Four decimals, or three digits of what is smaller."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0001 else f"{value:.2e}"

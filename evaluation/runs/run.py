"""One run: a suite, a target and a folder. Interrupted, the same command goes on; finished, it asks nothing again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from evaluation.errors import RunError
from evaluation.intervals import mean_figures
from evaluation.replies import Asker, Target
from evaluation.runs.progress import shown_replies
from evaluation.runs.record import ANSWERS, LOCK, REPLIES, RUN, SCORES, Kind, RunRecord, read_record, read_scores
from evaluation.runs.store import CachedAsker, ReplyStore
from evaluation.suite import Answer, Score, Suite

__all__ = ["MakeSuite", "RunOptions", "check_folder", "clear_folder", "locked", "now", "read_reference", "run_suite"]

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


def read_reference(folder: Path, suite: Suite, target: Mapping[str, object]) -> tuple[RunRecord, list[Score]]:
    """The retain model's record and scores.

    Raises:
        RunError: it is no finished run, one of another suite or of other questions, of a model with another tokenizer,
            or of the very model that is evaluated.
    """
    record = read_record(folder)
    if record.suite != suite.name:
        raise RunError(f"--retain-run: {folder} is a run of {record.suite}; give one of {suite.name}")
    settings = suite.describe()
    different = sorted(
        name for name in {*settings, *record.suite_settings} if settings.get(name) != record.suite_settings.get(name)
    )
    if different:
        raise RunError(
            f"--retain-run: {folder} was measured on other questions or settings ({', '.join(different)} differ); "
            "evaluate the retain model with the same options"
        )
    _check_models(record.target, target, folder)
    return record, read_scores(folder)


def _check_models(retain: Mapping[str, object], target: Mapping[str, object], folder: Path) -> None:
    ours, theirs = target.get("tokenizer_sha256"), retain.get("tokenizer_sha256")
    if ours and theirs and ours != theirs:
        raise RunError(
            f"--retain-run: {folder} is of a model with another tokenizer; give a retain model of the same family"
        )
    if target.get("weights_sha256") and target["weights_sha256"] == retain.get("weights_sha256"):
        raise RunError(
            f"--retain-run: {folder} is of the very model that is evaluated; give the run of one that never learned"
        )


def run_suite(make: MakeSuite, target: Target, options: RunOptions, console: Console) -> RunRecord:
    """Measure, write the folder, and return its record.

    The target is checked before anything is asked: what a suite needs and a target lacks is an error at once.

    Raises:
        EvaluationError: data, target or folder cannot be used. What was answered is kept.
    """
    folder = options.out
    check_folder(folder)
    with shown_replies(console) as on_reply:
        store = ReplyStore(folder / REPLIES)
        suite = make(lambda other: CachedAsker(other, store, on_reply=on_reply))
        reference = read_reference(options.reference, suite, target.describe()) if options.reference else None
        record = _record(suite, dict(target.describe()), options, now())
        if reference is not None and options.reference is not None:
            record = replace(record, reference={"label": reference[0].label, "run": options.reference.name})
        record = record if options.force else _continued(record, folder)
        target.check(suite.probe())
        with locked(folder):
            if options.force:
                clear_folder(folder)
            store.load()
            record.write(folder)
            scores, answers = _measured(suite, CachedAsker(target, store, on_reply=on_reply), options.draws)
            record = _finished(record, suite, scores, reference[1] if reference else None)
            record.write(folder, scores, answers)
    return record


def _measured(suite: Suite, asker: CachedAsker, draws: int) -> tuple[list[Score], tuple[Answer, ...]]:
    """The scores of all draws, and the answers of the first."""
    scores: list[Score] = []
    answers: tuple[Answer, ...] = ()
    for draw in range(draws):
        outcome = suite.measure(asker.with_draw(draw))
        scores += [replace(score, draw=draw) for score in outcome.scores]
        answers = outcome.answers if draw == 0 else answers
    return scores, answers


def _finished(record: RunRecord, suite: Suite, scores: list[Score], reference: list[Score] | None) -> RunRecord:
    """The record with its figures."""
    own = suite.figures(scores, reference)
    names = {figure.name for figure in own}
    means = [figure for figure in mean_figures(scores, suite.unbounded_metrics) if figure.name not in names]
    return replace(record, figures=(*own, *means), finished=now())


def _record(suite: Suite, target: dict[str, object], options: RunOptions, started: str) -> RunRecord:
    return RunRecord(
        suite=suite.name,
        label=options.label,
        kind=options.kind,
        method=options.method,
        strength=options.strength,
        target=target,
        suite_settings=dict(suite.describe()),
        draws=options.draws,
        started=started,
        headline=tuple(suite.headline),
        directions=dict(suite.directions),
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
    if not _is_run(folder) and any(path.name != LOCK for path in folder.iterdir()):
        raise RunError(f"--out: {folder} holds something that is no run; choose another folder")


def _is_run(folder: Path) -> bool:
    """Other commands leave a `run.json` too: it takes more than the name."""
    try:
        read_record(folder)
    except RunError:
        return not (folder / RUN).exists() and (folder / REPLIES).is_file()
    return True


def clear_folder(folder: Path) -> None:
    """Remove an earlier run's files, and nothing else."""
    for name in (RUN, SCORES, ANSWERS, REPLIES):
        (folder / name).unlink(missing_ok=True)


def _continued(record: RunRecord, folder: Path) -> RunRecord:
    """With the start of the run in the folder, if it is this one."""
    if not (folder / RUN).is_file():
        return record
    before = read_record(folder)
    if before.finished is None and not (folder / REPLIES).is_file():  # it failed before it asked anything
        return record
    if before.identity != record.identity:
        raise RunError(
            f"--out: {folder} holds a run of another target, suite or setting ({before.suite}, {before.label}); "
            "choose another folder, or --force to replace it"
        )
    return replace(record, started=before.started)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where there is none, for this process alone while the block runs.

    Raises:
        RunError: another process has it, or the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise RunError(f"--out: {folder}: another process is writing this run; wait for it") from error
    except OSError as error:
        raise RunError(f"--out: {folder}: cannot be written ({error.strerror})") from error


def now() -> str:
    """UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")

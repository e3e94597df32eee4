"""How far a long job is: live bars on a terminal, a line now and then anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

_LINE_EVERY_S = 10.0


class Show(Protocol):
    """Shows that `done` of `total` are done under a title, with a note on the last one."""

    def __call__(self, title: str, done: int, total: int | None, note: str = "") -> None: ...


@contextmanager
def shown_progress(console: Console) -> Iterator[Show]:
    """Shows what it is told while the block runs: a bar for every title, or lines at least ten seconds apart."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
    )
    progress = Progress(*columns, console=console)
    bars: dict[str, TaskID] = {}

    def show(title: str, done: int, total: int | None, note: str = "") -> None:
        if title not in bars:
            progress.start()  # not before: errors found earlier stay alone on their line
            bars[title] = progress.add_task(title, total=total, note=note)
        progress.update(bars[title], completed=done, total=total, note=note)

    try:
        yield show
    finally:
        if bars:
            progress.stop()


def _lines(console: Console) -> Show:
    begun: dict[str, tuple[float, int]] = {}
    last_line = time.monotonic()

    def show(title: str, done: int, total: int | None, note: str = "") -> None:
        nonlocal last_line
        now = time.monotonic()
        started, first = begun.setdefault(title, (now, done))  # a resumed job starts later than at 0
        if done != total and now - last_line < _LINE_EVERY_S:
            return
        last_line = now
        parts = [f"{title}: {done}" + (f" of {total}" if total is not None else ""), note]
        parts.append(f"{now - started:.0f} s")
        if total is not None and done > first:
            parts.append(f"{(now - started) / (done - first) * (total - done):.0f} s left")
        console.print(", ".join(filter(None, parts)), highlight=False, soft_wrap=True)

    return show

"""How far a run is: a live bar on a terminal, a line now and then anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Left

from evaluation.runs.store import OnReply

__all__ = ["shown_replies"]

_LINE_EVERY_S = 10.0


@contextmanager
def shown_replies(console: Console) -> Iterator[OnReply]:
    """Shows the replies of each call of an asker, under its title, while the block runs."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        Left(),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_reply(title: str, done: int, total: int) -> None:
            if title not in bars:
                bars[title] = progress.add_task(title or "replies")
            progress.update(bars[title], completed=done, total=total)

        yield on_reply


def _lines(console: Console) -> OnReply:
    last_line = 0.0

    def on_reply(title: str, done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if done == total or now - last_line >= _LINE_EVERY_S:
            last_line = now
            console.print(f"{title or 'replies'}: {done} of {total}", highlight=False, soft_wrap=True)

    return on_reply

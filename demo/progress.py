"""How far a training is: a live bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils import logging as transformers_logging

OnStep = Callable[[int, float], None]
"""Takes the steps done and the loss of the last one."""

_LINE_EVERY_S = 10.0


@contextmanager
def training_progress(title: str, steps: int, console: Console) -> Iterator[OnStep]:
    """Shows loss and time left of `steps` steps while the block runs."""
    if not console.is_terminal:
        yield _lines(title, steps, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Training the {title}", total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)


@contextmanager
def no_transformers_bar() -> Iterator[None]:
    """transformers draws a bar for every checkpoint it reads or writes, in the middle of ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _lines(title: str, steps: int, console: Console) -> OnStep:
    started = last_line = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        nonlocal last_line
        now = time.monotonic()
        if step < steps and now - last_line < _LINE_EVERY_S:
            return
        last_line = now
        elapsed_s = now - started
        left_s = elapsed_s / step * (steps - step)
        console.print(
            f"Training the {title}: step {step} of {steps}, loss {loss:.3f}, {elapsed_s:.0f} s, {left_s:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )

    return on_step

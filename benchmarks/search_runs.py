"""What one search for a corruption strength came to and took, whoever searched."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class SearchRun:
    """`start` is None where none was given, `unseen_value` (under noise no search has seen) where not measured."""

    name: str
    start: float | None
    seconds: float
    core_seconds: float
    answers: int
    """Prompts answered: strengths times noise draws times examples."""
    forward_passes: int
    strength: float
    value: float
    distance: float
    reached: bool
    unseen_value: float | None
    startup_s: float


def timed(call: Callable[[], T]) -> tuple[T, float, float]:
    """What the call returns, and the seconds and core seconds that it took."""
    started, core_started = time.perf_counter(), core_seconds()
    result = call()
    return result, time.perf_counter() - started, core_seconds() - core_started


def core_seconds(pid: int | None = None) -> float:
    """User and system seconds of a process (None: this one) and of all below it that are still running (Linux).

    Other work on the machine does not lengthen them as it does wall time.
    """
    folder = Path("/proc") / str(pid or os.getpid())
    try:
        after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0.0
    ticks = int(after_name[11]) + int(after_name[12])  # utime and stime, fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK") + sum(core_seconds(int(child)) for child in children)

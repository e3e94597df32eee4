"""Processor time, which other work on the machine does not lengthen as it does wall time."""

import os
from pathlib import Path

__all__ = ["core_seconds"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def core_seconds(pid: int | None = None) -> float:
    """User and system seconds of a process (None: this one) and of all below it that are still running (Linux)."""
    folder = Path("/proc") / str(pid or os.getpid())
    try:
        after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0.0
    own = (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S  # utime and stime, fields 14 and 15 of proc(5)
    return own + sum(core_seconds(int(child)) for child in children)

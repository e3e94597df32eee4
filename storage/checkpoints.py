"""Checkpoints that transformers' Trainer leaves on its way. Needs none of it."""

import contextlib
import json
import shutil
from pathlib import Path

_STATE_FILE = "trainer_state.json"


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; torn ones, left by a kill, are removed.

    The Trainer writes its state file last.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        with contextlib.suppress(OSError, ValueError):
            json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
            return str(path)
        shutil.rmtree(path, ignore_errors=True)
    return None

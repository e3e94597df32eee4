"""The folder beside a policy that an interrupted build goes on in."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from optimizer.errors import BuildError

_STATE_FILE = "build.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def open_building(out: Path, state: Mapping[str, str], *, resume: bool, console: Console) -> Path:
    """`<out>.building`: a new one, or with `resume` that of the interrupted build.

    Args:
        state: what the two builds must share, by flag; contents by their digest.

    Raises:
        BuildError: the folder is something else's, cannot be written, or is to be resumed with other options.
    """
    building = out.with_name(f"{out.name}.building")
    known = building / _STATE_FILE
    if building.exists() and not known.is_file():
        raise BuildError(f"--out: {building} exists and is of no policy build; move it away")
    if resume and building.exists():
        if differing := _differing(_read(known), state):
            raise BuildError(
                f"--resume: {building} is of a build with other options or examples: {'; '.join(differing)}. Give "
                "those, or build without --resume"
            )
        return building
    if resume:
        console.print(f"--resume: nothing to resume, no {building}; building from the start", highlight=False)
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        known.write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        raise BuildError(f"--out: {building} cannot be written ({error.strerror})") from error
    return building


def _read(known: Path) -> Mapping[str, str]:
    try:
        state = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise BuildError(f"--resume: {known} cannot be read; build without --resume")
    return state


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The flags whose values are not the same, with both; of contents only that they changed."""
    told = []
    for flag, value in now.items():
        if (was := before.get(flag, "not recorded")) != value:
            contents = _DIGEST.fullmatch(was) and _DIGEST.fullmatch(value)
            told.append(f"{flag} has other contents" if contents else f"{flag} was {was}, now {value}")
    return told

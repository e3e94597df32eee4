"""What operators said of policies: a `record.json` each, in a folder by the policy's name.

Blocking, for a thread. Whoever writes holds the policy folder's lock.
"""

import contextlib
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from console.errors import EcoError, first_problem
from gateway.policies.activation import Activation, Entry, Record
from guard import PolicyBundle
from guard.bundle import NAME_PATTERN
from storage.whole import write_whole

_RECORD = "record.json"

#: Changes where a file of some does: names, times, sizes, inodes.
Signature = tuple[tuple[str, int, int, int], ...]


class FolderError(EcoError):
    """The policy folder cannot be read or written, or does not hold what was asked for."""


class Records:
    """The records of a policy folder. `scan` them again and again; of what did not change nothing is read twice.

    Args:
        state: the folder that has a folder for each policy.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._seen: dict[str, tuple[Signature, Record]] = {}
        self._leaving: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any was seen."""
        return bool(self._seen)

    def folder_of(self, name: str) -> Path:
        if not re.fullmatch(NAME_PATTERN, name):
            raise FolderError(f"policy name {name!r}: letters, digits, dot, dash and underscore, 128 at most")
        return self._state / name

    def names(self) -> list[str]:
        """Of all policies that have a folder here."""
        names = [child.name for child in self._state.iterdir()] if is_folder(self._state) else []
        return sorted(name for name in names if re.fullmatch(NAME_PATTERN, name) and is_folder(self._state / name))

    def read(self, name: str) -> Record:
        """What was said of a policy; an empty record where nothing was.

        Raises:
            FolderError: it cannot be read.
        """
        file = self.folder_of(name) / _RECORD
        try:
            return Record.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise FolderError(f"{file}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise FolderError(f"{file}: {first_problem(error, 'record')}") from error

    def write(self, name: str, record: Record) -> None:
        write_whole(self.folder_of(name) / _RECORD, record.model_dump_json(indent=2) + "\n")

    def add(
        self,
        record: Record,
        name: str,
        activation: Activation,
        bundle: PolicyBundle | None,
        *,
        by: str,
        folder: str | None = None,
        event: str = "activated",
        restores: int | None = None,
    ) -> Record:
        """Write what follows on `record`: that `activation` holds, with that version; None: that the policy acts no
        more."""
        entry = Entry.model_validate(
            {
                "serial": record.serial + 1,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "by": by,
                "event": event if bundle is not None else "deactivated",
                "activation": activation,
                "digest": None if bundle is None else bundle.digest,
                "version": None if bundle is None else bundle.config.version,
                "folder": folder,
                "restores": restores,
            }
        )
        following = record.then(entry, activation)
        self.write(name, following)
        return following

    def forget(self, name: str) -> None:
        """It was deleted, and is not missing."""
        self._seen.pop(name, None)

    def scan(self, refused: dict[str, str], *, strict: bool) -> dict[str, Record]:
        """Records by name. Of one that cannot be read the last that could holds, or the bundle alone.

        Args:
            refused: takes the reasons, by where the record lies.
        """
        found: dict[str, Record] = {}
        present = self.names()
        gone = set(self._seen) - set(present)
        for name in gone & self._leaving:
            del self._seen[name]
        self._leaving = gone - self._leaving  # at two looks, as folders
        found |= {name: self._seen[name][1] for name in self._leaving}
        for name in present:
            file, where = self.folder_of(name) / _RECORD, f"{self._state.name}/{name}"
            now = signature([file])
            before = self._seen.get(name, ((), Record()))
            if not now and before[1].entries:
                refused[where] = f"{file}: is gone; what it said last holds"
            elif now != before[0]:
                try:
                    before = now, self.read(name)
                except FolderError as error:
                    if strict:
                        raise
                    refused[where] = str(error)
            self._seen[name] = before
            found[name] = before[1]
        return found


def is_folder(path: Path) -> bool:
    """Whether it is one. What cannot be told is an error, and not a no."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def signature(files: list[Path]) -> Signature:
    """Changes where one of the files does."""
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            seen = file.stat()
            found.append((file.name, seen.st_mtime_ns, seen.st_size, seen.st_ino))
    return tuple(found)

"""A policy folder that lies in an object store (S3, GCS, Azure, …): copied into one on this machine, and read there.

What lies in the store is only read: who may change it is the store's to say, and there is no lock to write under.
"""

import atexit
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from console.errors import first_line
from gateway.policies.archive import MAX_UNPACKED_BYTES
from gateway.policies.folder import STATE, PolicyFolder
from gateway.policies.records import FolderError
from storage.whole import whole_folder, write_whole

#: How often a store is listed: every listing is a request that is paid for.
STORE_POLL_S = 10.0

#: Of each file of a unit by its name there, what the store says of it: another text where it has changed. A unit that
#: is a single file has it under "".
_Files = dict[str, str]


def open_folder(place: str) -> PolicyFolder:
    """The policy folder that `--policy-dir` names: a path, or the address of one in a store (`s3://bucket/policies`).

    Raises:
        FolderError: it is no such folder.
    """
    if "://" not in place:
        return PolicyFolder(Path(place))
    store = PolicyStore.open(place)
    return PolicyFolder(store.folder, address=place, refill=store.refill)


@dataclass(slots=True)
class PolicyStore:
    """A folder of policies in an object store, and its copy in `folder`. Blocking, for a thread.

    Attributes:
        url: as the operator gave it.
        folder: the copy, this process's own.
    """

    url: str
    folder: Path
    _files: Any
    _root: str
    _copied: dict[str, _Files] = field(default_factory=dict, init=False)
    _next_s: float = field(default=0.0, init=False)
    _failed: FolderError | None = field(default=None, init=False)
    _refused: dict[str, str] = field(default_factory=dict, init=False)

    @classmethod
    def open(cls, url: str) -> Self:
        """Name a store; nothing is asked of it yet.

        Raises:
            FolderError: fsspec does not know such addresses, or the package that does is not installed.
        """
        import fsspec  # type: ignore[import-untyped]

        try:
            files, root = fsspec.url_to_fs(url)
        except Exception as error:  # what the packages raise: ImportError, ValueError, their own
            raise FolderError(f"--policy-dir: {url}: cannot be opened ({first_line(error)})") from error
        folder = Path(tempfile.mkdtemp(prefix="eco-policies-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return cls(url, folder, files, str(root).rstrip("/"))

    def refill(self) -> dict[str, str]:
        """Copy what has changed, at most every `STORE_POLL_S`; returns reasons by what could not be copied: of that the
        copy stays as it was.

        Raises:
            FolderError: the store cannot be listed; the copy stays as it was.
        """
        now = time.monotonic()
        if now < self._next_s:
            if self._failed is not None:
                raise self._failed
            return self._refused
        self._next_s, self._failed = now + STORE_POLL_S, None
        try:
            listed, sizes = self._listing()
        except Exception as error:  # what the packages raise is their own
            self._failed = FolderError(f"policy store {self.url}: cannot be listed ({first_line(error)})")
            raise self._failed from error
        if self._copied and not listed:
            self._failed = FolderError(f"policy store {self.url}: is empty all at once: lost; its policies act on")
            raise self._failed
        refused: dict[str, str] = {}
        for unit in self._copied.keys() - listed.keys():
            self._remove(self.folder / unit)
            del self._copied[unit]
        for unit, files in sorted(listed.items()):
            if self._copied.get(unit) == files:
                continue
            try:
                self._copy(unit, files, sizes[unit])
                self._copied[unit] = files
            except Exception as error:  # noqa: BLE001 - as above, and the disk
                refused[unit] = f"policy store {self.url}: {unit}: cannot be copied ({first_line(error)})"
        self._refused = refused
        return refused

    def _listing(self) -> tuple[Mapping[str, _Files], Mapping[str, int]]:
        """The store's files by the folders that are copied whole, and how large these are in bytes."""
        self._files.invalidate_cache()
        units: defaultdict[str, _Files] = defaultdict(dict)
        sizes: defaultdict[str, int] = defaultdict(int)
        for path, info in self._files.find(self._root, detail=True).items():
            parts = path.removeprefix(self._root).lstrip("/").split("/")
            if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
                continue  # markers of folders, and what is no name of a file
            if (found := _unit(parts)) is None:
                continue
            unit, name = found
            units[unit][name] = str(sorted(info.items(), key=lambda item: str(item[0])))
            sizes[unit] += info.get("size") or 0
        return units, sizes

    def _copy(self, unit: str, files: _Files, size: int) -> None:
        if size > MAX_UNPACKED_BYTES:
            raise FolderError(f"is larger than {MAX_UNPACKED_BYTES >> 20} MiB")
        if "" in files:
            return write_whole(self.folder / unit, self._files.cat_file(f"{self._root}/{unit}"))
        with whole_folder(self.folder / unit) as work:
            names = sorted(files)
            targets = [work / name for name in names]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get([f"{self._root}/{unit}/{name}" for name in names], [str(target) for target in targets])
            if missing := [name for name, target in zip(names, targets, strict=True) if not target.is_file()]:
                raise FolderError(f"{missing[0]} is gone")
        return None

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _unit(parts: Sequence[str]) -> tuple[str, str] | None:
    """What a file is copied with, and its name in there: with a policy's folder, with a kept version's, or alone. None
    where it is of no interest."""
    match parts:
        case [str() as folder, _, *_] if not folder.startswith("."):
            return folder, "/".join(parts[1:])
        case [state, _, "versions", _, _, *_] if state == STATE:
            return "/".join(parts[:4]), "/".join(parts[4:])
        case [state, ".identity"] | [state, _, "record.json"] if state == STATE:
            return "/".join(parts), ""
    return None

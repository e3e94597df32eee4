"""A policy folder that lies in an object store (S3, GCS, Azure, …): copied into one on this machine, and read there.

What lies in the store is only read: who may change it is the store's to say, and there is no lock to write under.
"""

import atexit
import functools
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from console.errors import first_line
from gateway.policies.archive import MAX_UNPACKED_BYTES
from gateway.policies.folder import STATE, PolicyFolder
from gateway.policies.records import FolderError
from storage.whole import whole_folder, write_whole

#: How often a store is listed: every listing is a request that is paid for.
STORE_POLL_S = 10.0

#: A listing, or the copy of one policy, may take this long.
STORE_ANSWERS_S = 60.0

#: Levels of folders that a policy folder has: `.eco/NAME/versions/DIGEST/plots`, and one to spare.
_DEEPEST = 7

T = TypeVar("T")

#: Of each file of a unit by its name there, what the store says of it: another text where it has changed. A unit that
#: is a single file has it under "".
_Files = dict[str, str]


class _SlowError(FolderError):
    """A store does not answer in time."""


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
    _missing: set[str] = field(default_factory=set, init=False)
    _at_work: threading.Thread | None = field(default=None, init=False)

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
            listed, sizes = self._within(self._listing)
        except Exception as error:  # what the packages raise is their own
            self._failed = FolderError(f"policy store {self.url}: cannot be listed ({first_line(error)})")
            raise self._failed from error
        if self._copied and not listed:
            self._failed = FolderError(f"policy store {self.url}: is empty all at once: lost; its policies act on")
            raise self._failed
        refused: dict[str, str] = {}
        missing = self._copied.keys() - listed.keys()
        for unit in missing & self._missing:  # at two listings: one that is replaced is away for a moment
            self._remove(self.folder / unit)
            del self._copied[unit]
        self._missing = missing - (missing & self._missing)
        for unit, files in sorted(listed.items()):
            if self._copied.get(unit) == files:
                continue
            try:
                self._within(functools.partial(self._copy, unit, files, sizes[unit]))
                self._copied[unit] = files
            except _SlowError as error:
                self._failed = FolderError(f"policy store {self.url}: {unit}: {error}")
                raise self._failed from error
            except Exception as error:  # noqa: BLE001 - as above, and the disk
                refused[unit] = f"policy store {self.url}: {unit}: cannot be copied ({first_line(error)})"
        self._refused = refused
        return refused

    def _within(self, work: Callable[[], T]) -> T:
        """What `work` gives. It is left behind where it takes too long: a store that hangs must hold up neither the
        other policies nor the end of the process."""
        if self._at_work is not None and self._at_work.is_alive():
            raise _SlowError("does not answer")
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - for who waits
                done.set_exception(error)

        self._at_work = threading.Thread(target=run, name="eco-policy-store", daemon=True)
        self._at_work.start()
        try:
            return done.result(STORE_ANSWERS_S)
        except TimeoutError:
            if done.done():
                raise  # its own
            raise _SlowError(f"does not answer in {STORE_ANSWERS_S:g} s") from None

    def _listing(self) -> tuple[Mapping[str, _Files], Mapping[str, int]]:
        """The store's files by the folders that are copied whole, and how large these are in bytes."""
        self._files.invalidate_cache()
        units: defaultdict[str, _Files] = defaultdict(dict)
        sizes: defaultdict[str, int] = defaultdict(int)
        found = _walked(self._files, self._root) if _walks(self._files) else self._files.find(self._root, detail=True)
        for path, info in found.items():
            parts = path.removeprefix(self._root).lstrip("/").split("/")
            if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
                continue  # markers of folders, and what is no name of a file
            if (place := _unit(parts)) is None:
                continue
            unit, name = place
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


def _walks(files: Any) -> bool:
    """Whether a store's `find` walks folder by folder: then it leaves out a folder that it cannot list."""
    from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
    from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

    if isinstance(files, AsyncFileSystem):
        return type(files)._find is AsyncFileSystem._find
    return type(files).find is AbstractFileSystem.find


def _walked(files: Any, root: str) -> dict[str, Any]:
    """All files below a folder, or an error."""
    found: dict[str, Any] = {}
    level = [root]
    for _ in range(_DEEPEST):
        listed = [info for folder in level for info in files.ls(folder, detail=True)]
        found |= {info["name"]: info for info in listed if info["type"] != "directory"}
        level = [info["name"] for info in listed if info["type"] == "directory"]
    return found


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

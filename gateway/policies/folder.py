"""The policy folder: what lies in it is served.

    FOLDER/x/                      a bundle that was put there; its policy acts as it says, while it lies there
    FOLDER/.eco/NAME/record.json   what operators said of the policy of that name (`Record`), and what was before
    FOLDER/.eco/NAME/versions/     bundles that came over the admin address, and copies of those that have acted
    FOLDER/.eco/.identity          a random number: where it changes, another folder lies in its place

Blocking, for a thread. Several processes may share the folder: whoever writes holds `.eco/.lock`, and what is
written is written whole.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from gateway.policies.activation import Activation, Record
from gateway.policies.records import FolderError, Records, Signature, is_folder, signature
from guard import BundleError, PolicyBundle, load_bundle
from guard.bundle import MANIFEST_FILE, PolicyConfig
from storage.whole import whole_folder, write_whole

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

STATE = ".eco"
#: Versions of a policy that are kept beside the one that acts.
KEPT_VERSIONS = 10
_LOCK_S = 10.0
_VERSIONS, _LOCK, _IDENTITY = "versions", ".lock", ".identity"

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ChangedMeanwhileError(FolderError):
    """A record is no longer the one that a change was made from."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A policy that is to act, and the folder its version came from, None where it is a kept one."""

    bundle: PolicyBundle
    activation: Activation
    folder: str | None = None
    serial: int = field(default=0, compare=False)
    """Of the record that says so."""

    @property
    def name(self) -> str:
        return self.bundle.config.name

    @property
    def config(self) -> PolicyConfig:
        """As it acts."""
        return self.activation.over(self.bundle.config)


@dataclass(frozen=True, slots=True)
class Scan:
    """What the folder asks for, by name in their order, and what of it cannot be had: reasons by where it lies."""

    wanted: tuple[Wanted, ...]
    refused: dict[str, str]
    unknown: frozenset[str] = frozenset()
    """Names of policies of which it cannot be told how they are to act: they go on as they do."""


@dataclass(slots=True)
class _Dropped:
    """A bundle's folder as it was last seen: `good` is the last bundle that was whole, which goes on acting."""

    seen: Signature = ()
    verified: Signature = ()
    judged: Signature = ()
    good: PolicyBundle | None = None
    reason: str | None = None
    is_absent: bool = False


@dataclass(slots=True)
class PolicyFolder:
    """One policy folder. `scan` it again and again; of what did not change nothing is read twice.

    Args:
        address: where it comes from, where `path` is but a copy that is only read.
        refill: brings that copy up to date before every look; returns what it could not, as `Scan.refused`.

    Raises:
        FolderError: there is no such folder.
    """

    path: Path
    address: str = ""
    refill: Callable[[], Mapping[str, str]] | None = None
    is_writable: bool = field(default=False, init=False)
    identity: str = field(default="", init=False)
    """The same for all who share the folder; "" until there is one."""
    _dropped: dict[str, _Dropped] = field(default_factory=dict, init=False)
    _kept: dict[Path, PolicyBundle] = field(default_factory=dict, init=False)
    _records: Records = field(init=False)
    _owners: dict[str, str] = field(default_factory=dict, init=False)
    """Of each name the folder that it acts from."""

    def __post_init__(self) -> None:
        self._records = Records(self.path / STATE)
        if not self.path.is_dir():
            raise FolderError(f"--policy-dir: {self.path}: no such folder; make it, and put policies in")
        if self.refill is not None:
            return
        try:
            (self.path / STATE).mkdir(exist_ok=True)
            self.is_writable = os.access(self.path / STATE, os.W_OK)
            with FileLock(self.path / STATE / _LOCK, timeout=_LOCK_S):
                if not (self.path / STATE / _IDENTITY).exists():
                    write_whole(self.path / STATE / _IDENTITY, secrets.token_hex(16) + "\n")
        except (OSError, Timeout):
            self.is_writable = False
            logger.warning("policy folder %s cannot be written: no versions are kept, and no uploads taken", self.path)

    def scan(self, *, strict: bool = False) -> Scan:
        """What is to act now.

        A bundle that is being copied, or is not whole, is refused while the last one that was whole in its place goes
        on. With `strict`, as at the start, when nothing acted before, that is an error where no version of it is kept.

        Raises:
            FolderError: it cannot be read, or everything in it is gone: that is a mount that was lost, not an order.
            BundleError: with `strict` alone.
        """
        try:
            not_copied = {} if self.refill is None else self.refill()
            if strict and not_copied:
                raise FolderError(next(iter(not_copied.values())))
            if strict and self.address and not any(self.path.iterdir()):
                raise FolderError(
                    f"--policy-dir: {self.address}: holds nothing; check the address and put policies there, or an "
                    f"{STATE}/{_IDENTITY} with any text where it shall be empty"
                )
            found = self._scan_dropped(strict)
            refused = {name: dropped.reason for name, dropped in found.items() if dropped.reason is not None}
            refused |= not_copied
            records = self._records.scan(refused, strict=strict)
        except OSError as error:
            raise FolderError(f"policy folder {self.path}: cannot be read ({error.strerror})") from error
        by_name = self._by_name(found, records, refused, strict=strict)
        wanted: list[Wanted] = []
        unknown: set[str] = set()
        for name in sorted({*by_name, *records}):
            record = records.get(name, Record())
            try:
                if (chosen := self._chosen(name, record.current, by_name)) is not None:
                    wanted.append(replace(chosen, serial=record.serial))
            except (FolderError, BundleError) as error:
                if strict:
                    raise
                refused[f"{STATE}/{name}"] = str(error)
                unknown.add(name)
        return Scan(tuple(wanted), refused, frozenset(unknown))

    def _by_name(
        self, found: Mapping[str, _Dropped], records: Mapping[str, Record], refused: dict[str, str], *, strict: bool
    ) -> dict[str, tuple[str, PolicyBundle]]:
        """Bundles that lie here and their folders, by name. Of two with one name that which acts already."""
        by_name: dict[str, tuple[str, PolicyBundle]] = {}
        for folder, dropped in sorted(found.items(), key=lambda item: (item[0] not in self._owners.values(), item[0])):
            bundle = dropped.good or self._kept_in_place_of(folder, records)
            if bundle is None:
                if strict and dropped.reason is not None:
                    raise BundleError(dropped.reason)
            elif (other := by_name.setdefault(bundle.config.name, (folder, bundle)))[0] != folder:
                refused[folder] = (
                    f"{self.path / folder}: policy name {bundle.config.name!r} is that of {other[0]} too; "
                    "rebuild one with --name"
                )
                if strict:
                    raise BundleError(refused[folder])
        self._owners = {name: folder for name, (folder, _) in by_name.items()}
        return by_name

    def record(self, name: str) -> Record:
        """What was said of a policy; an empty record where nothing was."""
        return self._records.read(name)

    def versions(self, name: str) -> list[str]:
        """Digests of the kept versions of a policy."""
        folder = self._records.folder_of(name) / _VERSIONS
        if not folder.is_dir():
            return []
        return sorted(child.name for child in folder.iterdir() if _DIGEST.fullmatch(child.name))

    def newest(self, name: str) -> str | None:
        """Digest of the version that was kept last."""
        folder = self._records.folder_of(name) / _VERSIONS
        return max(self.versions(name), key=lambda digest: (folder / digest).stat().st_mtime_ns, default=None)

    def names(self) -> list[str]:
        """Of all policies that were ever heard of: acting, kept or recorded."""
        dropped = [seen.good.config.name for seen in list(self._dropped.values()) if seen.good is not None]
        return sorted({*self._records.names(), *dropped})

    def has(self, name: str) -> bool:
        """Whether a folder of that policy lies here."""
        return any(seen.good is not None and seen.good.config.name == name for seen in list(self._dropped.values()))

    def find(self, name: str, digest: str | None) -> tuple[PolicyBundle, str | None]:
        """A version of a policy, and the folder that it lies in: the kept one of that digest, or the one in its folder.

        Raises:
            FolderError: there is none.
            BundleError: it is not whole.
        """
        for folder, dropped in list(self._dropped.items()):
            bundle, owns = dropped.good, folder == self._owners.get(name, folder)
            if bundle is not None and owns and bundle.config.name == name and digest in (None, bundle.digest):
                return bundle, folder
        if digest is None:
            raise FolderError(f"policy {name!r}: no folder of it lies in {self.path}; name the digest of a version")
        return self._version(name, digest), None

    def keep(self, bundle: PolicyBundle) -> PolicyBundle:
        """Keep a version: a copy of the bundle, whole or not at all.

        Raises:
            FolderError: the folder cannot be written, or the bundle changes meanwhile.
            BundleError: it is no longer whole.
        """
        name, digest = bundle.config.name, bundle.digest
        target = self._records.folder_of(name) / _VERSIONS / digest
        if not target.is_dir():
            with self._writing(), whole_folder(target, replace=False) as work:
                shutil.copytree(bundle.path, work, dirs_exist_ok=True)
                os.utime(work)  # `newest` asks when it was kept, not when it was built
                if load_bundle(work).digest != digest:
                    raise FolderError(f"{bundle.path}: changed while it was copied; try again")
        return self._version(name, digest)

    def say(
        self,
        name: str,
        activation: Activation,
        *,
        by: str,
        event: str = "activated",
        restores: int | None = None,
        serial: int | None = None,
    ) -> Record:
        """Let `activation` hold for a policy from now on; returns its record. With `serial`, only where that is still
        the record's.

        Raises:
            ChangedMeanwhileError: it is not.
            FolderError: there is no such version, or the folder cannot be written.
            BundleError: the version is not whole.
        """
        bundle, folder = self.find(name, activation.digest) if activation.active else (None, None)
        with self._writing():
            record = self._records.read(name)
            if serial is not None and record.serial != serial:
                raise ChangedMeanwhileError(f"policy {name!r}: was changed meanwhile; try again")
            record = self._records.add(
                record, name, activation, bundle, by=by, folder=folder, event=event, restores=restores
            )
            self._forget_old_versions(name, record)
        return record

    def put_back(self, name: str, record: Record) -> None:
        """Let a policy's record be what it was.

        Raises:
            FolderError: the folder cannot be written.
        """
        with self._writing():
            self._records.write(name, record)

    def note_put(self, one: Wanted) -> None:
        """Keep a version that acts since its folder was put here, and write it into the record, where that does not say
        so already. Where somebody has changed the record since it was read, theirs holds.

        Raises:
            FolderError: the folder cannot be written.
        """
        self.keep(one.bundle)
        with self._writing():
            record = self._records.read(one.name)
            if record.serial == one.serial and (not record.entries or record.entries[-1].digest != one.bundle.digest):
                record = self._records.add(
                    record, one.name, one.activation, one.bundle, by="policy folder", folder=one.folder
                )
                self._forget_old_versions(one.name, record)

    def note_taken(self, name: str) -> None:
        """Write into the record that a policy's folder was taken away: what is put there next acts as it was built.

        Raises:
            FolderError: the folder cannot be written.
        """
        if not self._records.folder_of(name).is_dir():
            return
        with self._writing():
            record = self._records.read(name)
            if record.entries and record.entries[-1].digest is not None and record.current.digest is None:
                self._forget_old_versions(name, self._records.add(record, name, Activation(), None, by="policy folder"))

    def roll_back(self, name: str, *, by: str) -> Record:
        """Let hold again what held before.

        Raises:
            FolderError: nothing held before, or its version is no longer kept.
        """
        entry = self._records.read(name).before()
        if entry is None:
            raise FolderError(f"policy {name!r}: nothing held before what holds now")
        activation = entry.activation.model_copy(update={"digest": entry.digest})
        return self.say(name, activation, by=by, event="rolled back", restores=entry.serial)

    def delete(self, name: str) -> None:
        """Remove a policy, its kept versions, its record and its folder.

        Raises:
            FolderError: there is none, or the folder cannot be written.
        """
        dropped = [
            folder for folder, seen in self._dropped.items() if seen.good is not None and seen.good.config.name == name
        ]
        folders = [self.path / folder for folder in dropped]
        if not folders and not self._records.folder_of(name).is_dir():
            raise FolderError(f"policy {name!r}: not known here")
        with self._writing():
            for folder in [*folders, self._records.folder_of(name)]:
                if folder.is_dir():  # renamed first: what is half removed is no policy
                    gone = self.path / STATE / f".gone-{os.getpid()}-{folder.name}"
                    folder.rename(gone)
                    shutil.rmtree(gone)
        for folder_name in dropped:
            del self._dropped[folder_name]
        self._records.forget(name)

    def _scan_dropped(self, strict: bool) -> dict[str, _Dropped]:
        self._check_identity()
        present = {
            child.name
            for child in self.path.iterdir()
            if not child.name.startswith(".") and (child.is_symlink() or is_folder(child))
        }
        if not present and self._dropped and not self.identity:
            raise FolderError(f"policy folder {self.path}: is empty all at once: lost; its policies act on")
        for name in set(self._dropped) - present:
            if self._dropped[name].is_absent:  # at two looks: one that is replaced is away for a moment
                del self._dropped[name]
            else:
                self._dropped[name].is_absent = True
        for name in present:
            self._look_at(name, self._dropped.setdefault(name, _Dropped()), at_once=strict)
        return dict(self._dropped)

    def _check_identity(self) -> None:
        """Raise where another folder lies here, as when a mount is lost: what is not there is no order then."""
        try:
            found = (self.path / STATE / _IDENTITY).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            found = ""
        if self.identity and found != self.identity and (self._dropped or self._records):
            raise FolderError(f"policy folder {self.path}: is not the folder it was: lost; its policies act on")
        self.identity = found

    def _look_at(self, name: str, dropped: _Dropped, *, at_once: bool) -> None:
        """Verify a folder's bundle where it has changed, and then stood still from one look to the next: not while it
        is being copied."""
        dropped.is_absent = False
        folder = self.path / name
        manifest = signature([folder / MANIFEST_FILE])
        if dropped.good is not None and dropped.reason is None and manifest == dropped.verified:
            return
        files = signature(sorted(folder.rglob("*")))
        if dropped.reason is not None and files == dropped.judged:
            return
        if not at_once and files != dropped.seen:
            dropped.seen = files
            return
        dropped.verified, dropped.judged = manifest, files
        try:
            dropped.good, dropped.reason = load_bundle(folder), None
        except BundleError as error:
            dropped.reason = str(error)
        except OSError as error:  # it went while it was read
            dropped.reason = f"{folder}: cannot be read ({error.strerror})"

    def _chosen(self, name: str, activation: Activation, by_name: dict[str, tuple[str, PolicyBundle]]) -> Wanted | None:
        if not activation.active:
            return None
        folder, dropped = by_name.get(name, (None, None))
        if dropped is not None and activation.digest in (None, dropped.digest):
            return Wanted(dropped, activation, folder)
        return None if activation.digest is None else Wanted(self._version(name, activation.digest), activation)

    def _kept_in_place_of(self, folder: str, records: Mapping[str, Record]) -> PolicyBundle | None:
        """The version that acted last from a folder whose bundle is not whole, where it is kept."""
        for name, record in records.items():
            entry = record.entries[-1] if record.entries else None
            if entry is not None and entry.folder == folder and entry.digest is not None:
                with contextlib.suppress(FolderError, BundleError):
                    return self._version(name, entry.digest)
        return None

    def _version(self, name: str, digest: str) -> PolicyBundle:
        path = self._records.folder_of(name) / _VERSIONS / digest
        if path not in self._kept:
            if not path.is_dir():
                raise FolderError(f"policy {name!r}: no version {digest} is kept")
            bundle = load_bundle(path)
            if (bundle.config.name, bundle.digest) != (name, digest):
                raise FolderError(f"{path}: is another policy or version than its folder says")
            self._kept[path] = bundle
        return self._kept[path]

    def _forget_old_versions(self, name: str, record: Record) -> None:
        used = [entry.digest for entry in reversed(record.entries) if entry.digest is not None]
        recent = list(dict.fromkeys([*([record.current.digest] if record.current.digest else []), *used]))
        for digest in self.versions(name):
            if digest in used and digest not in recent[: KEPT_VERSIONS + 1]:
                path = self._records.folder_of(name) / _VERSIONS / digest
                self._kept.pop(path, None)
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if not self.is_writable:
            where = self.address or self.path
            how = "; change what lies there, as you put it there" if self.address else ""
            raise FolderError(f"policy folder {where}: cannot be written from here{how}")
        try:
            with FileLock(self.path / STATE / _LOCK, timeout=_LOCK_S):
                yield
        except Timeout as error:
            raise FolderError(f"policy folder {self.path}: another process writes for {_LOCK_S:g} s") from error
        except OSError as error:
            raise FolderError(f"policy folder {self.path}: cannot be written ({error.strerror})") from error

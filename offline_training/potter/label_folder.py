"""A folder of labelled blocks that appears bit by bit, and ends in the same bytes however often the job was killed.

Finished it holds labels.jsonl, a line {"ids": [...], "targets": [...]} for each block, and meta.json: how it was made
and its sha256. Until then there are key.json, how it is being made, and parts/, files of some blocks each.
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from offline_training.data.tokens import TokenizedExample
from offline_training.errors import DataError, JobError

__all__ = ["LABELS_FILE", "META_FILE", "LabelFolder", "load_labels"]

LABELS_FILE, META_FILE = "labels.jsonl", "meta.json"
_PARTS, _KEY_FILE = "parts", "key.json"
_TEMPORARY = ".labels.tmp"


class LabelFolder:
    """One job's folder. `key` is everything that decides the labels."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path = path
        self._key = dict(key)

    def prepare(self, *, resume: bool, force: bool) -> bool:
        """Makes the folder ready; returns whether there is something to do, which with finished labels there is not.

        Raises:
            JobError: it holds something that must not be replaced or gone on with, or the disk refuses.
        """
        finished, begun = self._finished(), _read(self.path / _KEY_FILE)
        if force and (finished is not None or begun is not None):
            self._clear((META_FILE, LABELS_FILE))
            finished = begun = None
        if finished is not None and finished.get("key") == self._key:
            self._clear(())
            return False
        if finished is not None or (begun is not None and begun != self._key):
            raise JobError(
                f"--out: {self.path} holds labels made otherwise; choose another folder, or replace them with --force"
            )
        if begun is not None and not resume:
            raise JobError(
                f"--out: {self.path} holds an unfinished job; go on with --resume, or replace it with --force"
            )
        if begun is None:
            self._begin()
        return True

    def has(self, number: int) -> bool:
        """Whether the part of this number is done."""
        return self._part(number).exists()

    def add(self, number: int, examples: Iterable[TokenizedExample]) -> None:
        """Keeps a part; it is on the disk when this returns."""
        _write(map(_line, examples), self._part(number))

    def finish(self, parts: int, summary: Mapping[str, int]) -> None:
        """All parts as one file, then meta.json, whose presence says that the folder is whole; then the parts go."""
        lines = itertools.chain.from_iterable(_lines(self._part(number)) for number in range(parts))
        _write(lines, self.path / LABELS_FILE)
        with (self.path / LABELS_FILE).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        meta = {"key": self._key, "sha256": digest, **summary}
        _write([json.dumps(meta, indent=1)], self.path / META_FILE)
        self._clear(())

    def _begin(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self._others())):
            raise JobError(f"--out: {self.path} exists and holds no labels; choose another folder")
        _write([json.dumps(self._key, indent=1)], self.path / _KEY_FILE)

    def _finished(self) -> dict[str, Any] | None:
        """meta.json, if it is one of ours."""
        found = _read(self.path / META_FILE)
        return found if found is not None and {"key", "sha256"} <= found.keys() else None

    def _others(self) -> Iterator[Path]:
        """Files that no job of ours leaves behind."""
        return (found for found in self.path.iterdir() if found.suffix != _TEMPORARY)

    def _clear(self, more: Iterable[str]) -> None:
        """Removes what only an unfinished job needs, and `more`."""
        try:
            for name in (*more, _KEY_FILE):
                (self.path / name).unlink(missing_ok=True)
            for left in self.path.glob(f"*{_TEMPORARY}"):
                left.unlink()
            if (self.path / _PARTS).exists():
                shutil.rmtree(self.path / _PARTS)
        except OSError as error:
            raise JobError(f"--out: {self.path}: cannot be cleared ({error.strerror})") from error

    def _part(self, number: int) -> Path:
        return self.path / _PARTS / f"{number:06}.jsonl"


def load_labels(folder: Path) -> list[TokenizedExample]:
    """The examples of a finished folder, for the trainer: `targets` are the generic labels.

    Raises:
        DataError: there are no finished labels, or they were changed.
    """
    meta = _read(folder / META_FILE)
    try:
        content = (folder / LABELS_FILE).read_bytes()
    except OSError as error:
        raise DataError(f"{folder}: holds no finished labels; make them first") from error
    if meta is None:
        raise DataError(f"{folder}: holds no finished labels; make them first")
    if hashlib.sha256(content).hexdigest() != meta.get("sha256"):
        raise DataError(f"{folder / LABELS_FILE}: not as it was written; make the labels again")
    rows = map(json.loads, content.splitlines())
    return [TokenizedExample(tuple(row["ids"]), tuple(row["targets"])) for row in rows]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _line(example: TokenizedExample) -> str:
    return json.dumps({"ids": example.ids, "targets": example.targets}, separators=(",", ":"))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        yield from (line.rstrip("\n") for line in stream)


def _write(lines: Iterable[str], path: Path) -> None:
    """The lines as a file that is there whole or not at all, even if the machine stops."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=_TEMPORARY, delete=False
        ) as stream:
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).chmod(0o644)
        Path(stream.name).replace(path)
    except OSError as error:
        raise JobError(f"--out: {path}: cannot be written ({error.strerror}); free some space and resume") from error

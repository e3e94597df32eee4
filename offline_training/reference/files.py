"""Files of a reference cache: arrays of rows written one after the other, and a description checked on opening."""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from offline_training.errors import JobError

__all__ = ["ArrayWriter", "CacheMeta", "FileMeta", "open_array", "read_meta", "write_meta"]

FORMAT = 1
_META = "meta.json"
_STORED_AS = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
}
_CHUNK = 1 << 24


@dataclass(frozen=True)
class FileMeta:
    """One array: its torch dtype (bfloat16 lies in the file as 16-bit integers), shape, size and checksum."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    crc32: int


@dataclass(frozen=True)
class CacheMeta:
    """What `meta.json` says."""

    key: str
    kind: str
    files: dict[str, FileMeta] = field(default_factory=dict)
    format: int = FORMAT


class ArrayWriter:
    """Writes an array of known shape row by row: nothing but the rows at hand is in memory.

    A plain file and no memory map, because a full disk is then an error and not a dead process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._file = path.open("wb")
        self._rows = 0
        header = {"descr": _STORED_AS[dtype], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]
        self._file.flush()
        self._crc32 = zlib.crc32(path.read_bytes())

    def append(self, rows: torch.Tensor) -> None:
        """Writes (N, …) rows; their dtype is changed to the array's."""
        values = rows.detach().to("cpu", self._dtype).contiguous()
        stored = (values.view(torch.int16) if self._dtype == torch.bfloat16 else values).numpy()
        data = stored.tobytes()
        self._file.write(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._rows += len(rows)

    def finish(self) -> FileMeta:
        """Closes the file, on disk for good. Raises ValueError where rows are missing or too many."""
        if self._rows != self._shape[0]:
            raise ValueError(f"{self._path.name}: {self._rows} rows written, {self._shape[0]} announced")
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return FileMeta(str(self._dtype).removeprefix("torch."), self._shape, size, self._crc32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class StoredArray:
    """An array on disk; reading rows reads these rows."""

    def __init__(self, path: Path, meta: FileMeta) -> None:
        self._rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._dtype: torch.dtype = getattr(torch, meta.dtype)

    def take(self, slices: Sequence[slice]) -> torch.Tensor:
        """The rows of all slices, behind each other, in memory."""
        rows = torch.from_numpy(np.concatenate([self._rows[part] for part in slices]))
        return rows.view(torch.bfloat16) if self._dtype == torch.bfloat16 else rows


def write_meta(folder: Path, meta: CacheMeta) -> None:
    """Writes `meta.json`, which makes a cache of the arrays in the folder."""
    with (folder / _META).open("w", encoding="utf-8") as file:
        json.dump(asdict(meta), file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def read_meta(folder: Path) -> CacheMeta:
    """What the cache in a folder holds. Raises JobError where that cannot be read, or is of another format."""
    path = folder / _META
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        files = {
            name: FileMeta(str(one["dtype"]), tuple(one["shape"]), int(one["bytes"]), int(one["crc32"]))
            for name, one in found["files"].items()
        }
        return CacheMeta(str(found["key"]), str(found["kind"]), files, int(found["format"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged(path, folder) from None


def open_array(folder: Path, name: str, meta: CacheMeta) -> StoredArray:
    """The array of this name. Raises JobError where its file is missing or is not what was written."""
    path = folder / f"{name}.npy"
    try:
        told = meta.files[name]
        if path.stat().st_size != told.bytes or _crc32(path) != told.crc32:
            raise damaged(path, folder)
        return StoredArray(path, told)
    except (OSError, ValueError, KeyError):
        raise damaged(path, folder) from None


def damaged(path: Path, folder: Path) -> JobError:
    return JobError(f"reference cache: {path} is missing or damaged; remove {folder} and start again")


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found

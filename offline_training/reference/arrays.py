"""Arrays on disk, written row by row, each with a checksum that is compared on opening."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

_STORED_AS = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
}
_CHUNK = 1 << 24


class FileMeta(BaseModel):
    """One array: its torch dtype (bfloat16 lies in the file as 16-bit integers), shape, size and checksum."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    crc32: int


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
        data = (values.view(torch.int16) if self._dtype == torch.bfloat16 else values).numpy().tobytes()
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
        dtype = str(self._dtype).removeprefix("torch.")
        return FileMeta(dtype=dtype, shape=self._shape, bytes=size, crc32=self._crc32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_array(path: Path, tensor: torch.Tensor) -> FileMeta:
    """A whole tensor at once."""
    with ArrayWriter(path, tuple(tensor.shape), tensor.dtype) as writer:
        writer.append(tensor)
        return writer.finish()


class StoredArray:
    """An array on disk; reading rows reads these rows.

    Raises ValueError, or OSError, where the file is missing or is not what was written.
    """

    def __init__(self, path: Path, meta: FileMeta) -> None:
        crc32 = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                crc32 = zlib.crc32(chunk, crc32)
        if (path.stat().st_size, crc32) != (meta.bytes, meta.crc32):
            raise ValueError(f"{path.name}: not as it was written")
        self._rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._dtype: torch.dtype = getattr(torch, meta.dtype)

    def take(self, slices: Sequence[slice]) -> torch.Tensor:
        """The rows of all slices, behind each other, in memory."""
        rows = torch.from_numpy(np.concatenate([self._rows[part] for part in slices]))
        return rows.view(torch.bfloat16) if self._dtype == torch.bfloat16 else rows

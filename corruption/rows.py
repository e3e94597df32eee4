"""Input-embedding rows straight from a checkpoint, without loading the model.

Rows come as the checkpoint stores them: in its dtype and without any scale. Some model classes multiply by a
constant when they embed (Gemma by the root of the hidden size). Policies are expressed in checkpoint units,
so this module never applies one; the server derives the scale at start-up by comparing these rows with the
engine's.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from corruption.checkpoint import TableLocation, locate_table, one_line
from corruption.errors import CheckpointError
from corruption.integers import int64_vector

_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_DIGEST_CHUNK_BYTES: Final = 16 * 2**20


class EmbeddingRows:
    """The input-embedding table of one checkpoint, memory-mapped: only the rows that are asked for are read.

    Safe to use from several threads. The file must not be changed while the object lives.

    Attributes:
        vocab_size: rows of the table. May exceed the tokenizer's vocabulary.
        hidden_size: width of the table. Usually the model's hidden size, but the table's own where a model
            projects its embeddings (OPT's `word_embed_proj_dim`).
        dtype: torch dtype of the table, and of the rows given out.
        tensor_name: the tensor's name in the checkpoint.
    """

    def __init__(self, location: TableLocation) -> None:
        self.tensor_name = location.tensor_name
        self._slice, stored_dtype, shape = _open_slice(location)
        table = f"{location.file}: {self.tensor_name}"
        if stored_dtype not in _DTYPES:
            raise CheckpointError(f"{table} is stored as {stored_dtype}; expected {', '.join(_DTYPES)}")
        if len(shape) != 2:
            raise CheckpointError(f"{table} has shape {shape}; an embedding table has two dimensions")
        if shape != location.expected_shape:
            raise CheckpointError(f"{table} has shape {shape}; the config says {location.expected_shape}")
        self.dtype = _DTYPES[stored_dtype]
        self.vocab_size, self.hidden_size = shape
        self._digest: str | None = None
        self._digest_lock = threading.Lock()

    @classmethod
    def open(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """Open the table of a local folder or a hub id.

        Of a hub repository, the config, the index and the one file with the table are downloaded where they
        are not cached; `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` work as in huggingface_hub. `revision` is a
        hub branch, tag or commit.

        Raises:
            CheckpointError: the checkpoint is missing, broken, not in safetensors, or has no such table.
        """
        return cls(locate_table(model, revision))

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """The rows (T, D) of these token ids, in order, as stored: checkpoint dtype, on the CPU, no scale.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an id outside 0..vocab_size-1.
        """
        ids = int64_vector("token_ids", token_ids)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(outside):
            raise ValueError(f"token_ids: {int(outside[0])} is outside the table's 0..{self.vocab_size - 1}")
        unique, inverse = torch.unique(ids, return_inverse=True)
        stored: Tensor = self._slice[unique.tolist()]  # (unique ids, D)
        return stored[inverse]

    def digest(self) -> str:
        """sha256 (hex) of the table's dtype, shape and bytes: the identity that a policy bundle records.

        Reads the whole table, in chunks; the first call takes about a second per gigabyte, later ones none.
        """
        with self._digest_lock:
            if self._digest is None:
                self._digest = self._hash_table()
            return self._digest

    def _hash_table(self) -> str:
        sha = hashlib.sha256(f"{self.dtype} {self.vocab_size} {self.hidden_size}\n".encode())
        step = max(1, _DIGEST_CHUNK_BYTES // (self.hidden_size * self.dtype.itemsize))
        for start in range(0, self.vocab_size, step):
            chunk: Tensor = self._slice[start : start + step]
            sha.update(chunk.contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()


def _open_slice(location: TableLocation) -> tuple[Any, str, tuple[int, ...]]:
    """The tensor as safetensors maps it, its dtype as safetensors spells it, and its shape."""
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(str(location.file), framework="pt")
        mapped = opened.get_slice(location.tensor_name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{location.file}: {location.tensor_name} cannot be read: {one_line(error)}") from error
    return mapped, mapped.get_dtype(), tuple(mapped.get_shape())

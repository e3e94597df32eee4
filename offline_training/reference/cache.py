"""What the frozen model says to fixed examples, computed once and kept on disk instead of a second model in memory.

A cache is a folder with a row for each answer token (ignored targets have none), written under a temporary name and
renamed when whole. Whoever builds it puts into its key all that the outputs follow from: model, examples, settings.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from offline_training.data.answers import FullReference, Reference, TopKReference
from offline_training.data.tokens import Stream
from offline_training.forward import AnswerForward
from offline_training.reference.build import Chosen, Progress, ReferenceKind, Sets, build
from offline_training.reference.files import CacheMeta, StoredArray, open_array, read_meta

__all__ = ["ReferenceCache", "ReferenceKind"]


class ReferenceCache:
    """Outputs of the frozen model for examples known by stream and number. Nothing reads a whole file into memory.

    Attributes:
        kind: what is kept, never `auto`.
        bytes: size on disk.
    """

    def __init__(self, folder: Path, meta: CacheMeta) -> None:
        self.kind = meta.kind
        self.bytes = sum(file.bytes for file in meta.files.values())
        self._arrays: dict[str, StoredArray] = {name: open_array(folder, name, meta) for name in meta.files}
        streams = [name.removesuffix(".numbers") for name in meta.files if name.endswith(".numbers")]
        self._rows = {stream: self._rows_of(stream) for stream in streams}
        self._heads: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}

    @classmethod
    def open(cls, folder: Path, key: str) -> "ReferenceCache | None":
        """The cache in a folder; None where there is none, or one of another key. Raises JobError on a damaged one."""
        if not folder.exists():
            return None
        meta = read_meta(folder)
        return cls(folder, meta) if meta.key == key else None

    @classmethod
    def build(
        cls,
        folder: Path,
        forward: AnswerForward,
        model: nn.Module,
        sets: Sets,
        *,
        only: Chosen | None = None,
        kind: ReferenceKind,
        top_k: int = 256,
        budget_bytes: int,
        batch_tokens: int,
        row_tokens: int | None = None,
        key: str,
        on_progress: Progress | None = None,
    ) -> "ReferenceCache":
        """Runs the model once over all sets and keeps what it says. A cache that is there already is replaced.

        Args:
            forward: of the model; where it has a hidden layer, that layer's outputs are kept as well.
            model: the frozen model, or the one to be trained before its first step.
            only: numbers of the examples that will be asked for, by stream; None: all of them.
            top_k: K of kind `top-k`, at most the vocabulary.
            budget_bytes: how large the cache may get.
            batch_tokens: tokens in one forward, at most (a longer sequence goes alone).
            row_tokens: as in `pack`.

        Raises JobError where the kind is not possible for the model, the cache would exceed the budget or the disk, it
        cannot be written, or the model's logits are not finite; nothing is left behind then.
        """
        build(
            folder,
            forward,
            model,
            sets,
            only=only,
            kind=kind,
            top_k=top_k,
            budget_bytes=budget_bytes,
            batch_tokens=batch_tokens,
            row_tokens=row_tokens,
            key=key,
            on_progress=on_progress,
        )
        return cls(folder, read_meta(folder))

    def take(
        self, stream: Stream, numbers: Sequence[int], device: torch.device | str
    ) -> tuple[Reference | None, torch.Tensor | None]:
        """What the frozen model says to examples of a stream, behind each other in the order of `numbers`.

        Returns its logits or likeliest tokens for the A targets that are not ignored (None for kind `layer`), and its
        hidden layer's outputs (A, D) float32 (None where there are none). Kind `hidden` applies the head as it was when
        the cache was built. Raises KeyError for a stream and IndexError for an example that is not in the cache.
        """
        found = self._rows[stream]
        if missing := [number for number in numbers if number not in found]:
            raise IndexError(f"{stream}: example {missing[0]} is not in the reference cache")
        slices = [found[number] for number in numbers] or [slice(0, 0)]

        def rows(name: str) -> torch.Tensor:
            return self._arrays[f"{stream}.{name}"].take(slices).to(device, non_blocking=True)

        layer = rows("layer").float() if f"{stream}.layer" in self._arrays else None
        reference: Reference | None = None
        if self.kind == "hidden":
            # Mixed precision around a training step must not reach the frozen model's logits.
            with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
                reference = FullReference(functional.linear(rows("hidden"), *self._head(torch.device(device))).float())
        elif self.kind == "logits":
            reference = FullReference(rows("logits").float())
        elif self.kind == "top-k":
            reference = TopKReference(rows("indices").long(), rows("logprobs").float(), rows("target_logprobs").float())
        return reference, layer

    def _rows_of(self, stream: str) -> dict[int, slice]:
        """Number of an example -> its rows."""
        numbers, offsets = (
            self._arrays[f"{stream}.{name}"].take([slice(None)]).tolist() for name in ("numbers", "offsets")
        )
        return {number: slice(*ends) for number, ends in zip(numbers, pairwise(offsets), strict=True)}

    def _head(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (V, D) and bias (V,) on a device, read once: the trained head has moved on since."""
        if device not in self._heads:
            whole = [slice(None)]
            bias = self._arrays["head.bias"].take(whole).to(device) if "head.bias" in self._arrays else None
            self._heads[device] = self._arrays["head.weight"].take(whole).to(device), bias
        return self._heads[device]

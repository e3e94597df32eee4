"""What the frozen model says to fixed examples, computed once and kept on disk instead of a second model in memory.

A cache is a folder with a row for each answer token (ignored targets have none) that appears whole or not at all.
Whoever builds it puts into its key all that the outputs follow from: model, examples, settings.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from torch.nn import functional

from offline_training.data.answers import FullReference, Reference, TopKReference
from offline_training.data.packing import pack
from offline_training.data.tokens import Stream, TokenizedExample
from offline_training.errors import JobError
from offline_training.forward import AnswerForward, ForwardOutput, evaluating
from offline_training.reference.arrays import ArrayWriter, FileMeta, StoredArray, write_array
from storage.whole import whole_folder, write_whole

ReferenceKind = Literal["auto", "hidden", "logits", "top-k", "layer"]
"""What is kept of each token: `hidden`, the inputs of the output embedding (exact, and V/D times smaller than logits);
`logits`; `top-k`, the K likeliest tokens; `layer`, nothing but outputs of the forward's hidden layer. `auto` is the
first of the first three that the model allows and the budget holds."""

Sets = Mapping[Stream, Sequence[TokenizedExample]]

_META = "meta.json"
_FORMAT = 3
"""Of the folder; 1 numbered the examples of interrupted jobs otherwise, 2 knew nothing of mixed precision."""


@dataclass(frozen=True)
class ReferenceSettings:
    """How a cache is built."""

    kind: ReferenceKind
    budget_bytes: int
    """How large the cache may get."""
    batch_tokens: int
    """Tokens in one forward, at most (a longer sequence goes alone)."""
    row_tokens: int | None = None
    """As in `pack`."""
    top_k: int = 256
    """K of kind `top-k`, at most the vocabulary."""


class _CacheMeta(BaseModel):
    """What `meta.json` says, which makes a cache of the arrays in the folder."""

    model_config = ConfigDict(frozen=True)

    key: str
    kind: ReferenceKind
    files: dict[str, FileMeta]
    autocast: Literal["bfloat16", "float16"] | None
    """Of the forward that made the outputs, and in which the head is applied to them again."""
    format: int = _FORMAT


class ReferenceCache:
    """Outputs of the frozen model for examples known by stream and number. Nothing reads a whole file into memory.

    Attributes:
        kind: what is kept, never `auto`.
        bytes: size on disk.
    """

    def __init__(self, folder: Path, meta: _CacheMeta) -> None:
        self.kind = meta.kind
        self.bytes = sum(file.bytes for file in meta.files.values())
        self._arrays: dict[str, StoredArray] = {}
        for name, file in meta.files.items():
            path = folder / f"{name}.npy"
            try:
                self._arrays[name] = StoredArray(path, file)
            except (OSError, ValueError):
                raise _damaged(path, folder) from None
        self._rows: dict[str, dict[int, slice]] = {}  # by stream, the rows of each example's number
        for stream in (name.removesuffix(".numbers") for name in meta.files if name.endswith(".numbers")):
            numbers, offsets = (
                self._arrays[f"{stream}.{name}"].take([slice(None)]).tolist() for name in ("numbers", "offsets")
            )
            ends = zip(numbers, pairwise(offsets), strict=True)
            self._rows[stream] = {number: slice(start, stop) for number, (start, stop) in ends}
        self._autocast = None if meta.autocast is None else getattr(torch, meta.autocast)
        self._heads: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}  # weight (V, D), bias (V,)

    @classmethod
    def open(cls, folder: Path, key: str) -> "ReferenceCache | None":
        """The cache in a folder; None where there is none, or another. Raises JobError on a damaged one."""
        if not folder.exists():
            return None
        path = folder / _META
        try:
            meta = _CacheMeta.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise _damaged(path, folder) from None
        return cls(folder, meta) if (meta.key, meta.format) == (key, _FORMAT) else None

    @classmethod
    def build(
        cls,
        folder: Path,
        forward: AnswerForward,
        model: nn.Module,
        sets: Sets,
        settings: ReferenceSettings,
        *,
        key: str,
        only: Mapping[Stream, Collection[int]] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "ReferenceCache":
        """Runs the model once over all sets and keeps what it says. A cache that is there already is replaced.

        Args:
            forward: of the model; where it has a hidden layer, that layer's outputs are kept as well.
            model: the frozen model, or the one to be trained before its first step.
            only: numbers of the examples that will be asked for, by stream; None: all of them.
            on_progress: called with the examples done and the examples in all.

        Raises JobError where the kind is not possible for the model, the cache would exceed the budget or the disk, it
        cannot be written, or the model's logits are not finite; nothing is left behind then.
        """
        numbers = {
            stream: sorted(set(only.get(stream, ()))) if only is not None else list(range(len(examples)))
            for stream, examples in sets.items()
        }
        sets = {stream: [examples[number] for number in numbers[stream]] for stream, examples in sets.items()}
        for torn in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
            shutil.rmtree(torn, ignore_errors=True)
        try:
            with evaluating(model):
                recipe = _recipe(settings, forward, model, sets)
                with whole_folder(folder) as building:
                    needed, free = recipe.bytes(_target_count(sets)), shutil.disk_usage(building).free
                    if needed > free:
                        raise JobError(
                            f"reference cache: {needed / 1e6:.1f} MB do not fit the {free / 1e6:.1f} MB free on "
                            f"{folder}'s disk"
                        )
                    files = {}
                    for stream, kept in numbers.items():
                        name = f"{stream}.numbers"
                        files[name] = write_array(building / f"{name}.npy", torch.tensor(kept, dtype=torch.int64))
                    files |= _write(building, recipe, forward, model, sets, settings, on_progress)
                    autocast = _autocast_of(next(model.parameters()).device.type)
                    meta = _CacheMeta(key=key, kind=recipe.kind, files=files, autocast=autocast)
                    write_whole(building / _META, meta.model_dump_json(indent=2))
        except OSError as error:
            raise JobError(f"reference cache: cannot write {folder}: {error.strerror or error}") from error
        return cls(folder, meta)

    def take(
        self, stream: Stream, numbers: Sequence[int], device: torch.device | str
    ) -> tuple[Reference | None, torch.Tensor | None]:
        """What the frozen model says to examples of a stream, behind each other in the order of `numbers`.

        Returns its logits or likeliest tokens for the A targets that are not ignored (None for kind `layer`), and its
        hidden layer's outputs (A, D) float32 (None where there are none). Kind `hidden` applies the head as it was when
        the cache was built. Raises KeyError for a stream and IndexError for an example that is not in the cache.
        """
        known = self._rows[stream]
        if missing := [number for number in numbers if number not in known]:
            raise IndexError(f"{stream}: example {missing[0]} is not in the reference cache")
        slices = [known[number] for number in numbers] or [slice(0, 0)]

        def rows(name: str) -> torch.Tensor:
            return self._arrays[f"{stream}.{name}"].take(slices).to(device, non_blocking=True)

        layer = rows("layer").float() if f"{stream}.layer" in self._arrays else None
        reference: Reference | None = None
        if self.kind == "hidden":
            device = torch.device(device)
            if device not in self._heads:  # read once: the trained head has moved on since
                whole = [slice(None)]
                bias = self._arrays["head.bias"].take(whole).to(device) if "head.bias" in self._arrays else None
                self._heads[device] = self._arrays["head.weight"].take(whole).to(device), bias
            # As the frozen model computed them, whatever precision the training step around this has.
            dtype = self._autocast
            with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                reference = FullReference(functional.linear(rows("hidden"), *self._heads[device]).float())
        elif self.kind == "logits":
            reference = FullReference(rows("logits").float())
        elif self.kind == "top-k":
            reference = TopKReference(rows("indices").long(), rows("logprobs").float(), rows("target_logprobs").float())
        return reference, layer


def _autocast_of(device_type: str) -> Literal["bfloat16", "float16"] | None:
    """The dtype of the mixed precision that is on; None where none is."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return "bfloat16" if torch.get_autocast_dtype(device_type) == torch.bfloat16 else "float16"


def _damaged(path: Path, folder: Path) -> JobError:
    return JobError(f"reference cache: {path} is missing or damaged; remove {folder} and start again")


@dataclass(frozen=True)
class _Recipe:
    """Which arrays a cache has: for each name, the width of a row (None: one number) and the dtype."""

    kind: ReferenceKind
    head: dict[str, torch.Tensor]
    arrays: dict[str, tuple[int | None, torch.dtype]]

    def bytes(self, tokens: int) -> int:
        """Size for that many tokens, but for headers and offsets."""
        row = sum((width or 1) * dtype.itemsize for width, dtype in self.arrays.values())
        return tokens * row + sum(tensor.nbytes for tensor in self.head.values())


def _recipe(settings: ReferenceSettings, forward: AnswerForward, model: nn.Module, sets: Sets) -> _Recipe:
    """The kind that is possible, fits and was asked for, tried out on one example of each set."""
    kind, budget = settings.kind, settings.budget_bytes
    if kind == "layer" and forward.hidden_layer is None:
        raise JobError("reference cache: there is no hidden layer to keep; give another kind than layer")
    if settings.top_k < 1:
        raise JobError(f"reference cache: top_k is {settings.top_k}; give at least 1")
    streams = {stream: examples[:1] for stream, examples in sets.items() if examples}
    if not streams:
        raise JobError("reference cache: there are no examples to run the model on")
    output, targets = next(_outputs(forward, model, [streams], None))
    head = _head_of(forward, output)
    if kind == "hidden" and not head:
        raise JobError(
            "reference cache: this model's logits do not come from its output embedding alone; give kind auto"
        )
    wanted: Sequence[ReferenceKind] = ("hidden", "logits", "top-k") if kind == "auto" else (kind,)
    needed = 0
    for candidate in wanted:
        if candidate == "hidden" and not head:
            continue
        arrays = {}
        for name, rows in _rows(candidate, settings.top_k, output, targets).items():
            # The model's dtype for what is float32 by a mere cast (a 16-bit model's logits, layer outputs).
            narrow = rows.to(next(model.parameters()).dtype)
            narrowed = name in ("logits", "layer") and torch.equal(narrow.to(rows.dtype), rows)
            arrays[name] = (rows.shape[1] if rows.dim() > 1 else None, narrow.dtype if narrowed else rows.dtype)
        recipe = _Recipe(candidate, head if candidate == "hidden" else {}, arrays)
        needed = recipe.bytes(_target_count(sets))
        if needed <= budget:
            return recipe
    raise JobError(
        f"reference cache: {wanted[-1]} takes {needed / 1e6:.1f} MB and the budget is {budget / 1e6:.1f} MB; "
        "raise the budget or take a smaller top-k"
    )


def _head_of(forward: AnswerForward, output: ForwardOutput) -> dict[str, torch.Tensor]:
    """Weight (V, D) and bias (V,) of the output embedding; nothing where applying them does not give these logits."""
    module = forward.output_embedding
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if output.head_inputs is None or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return {}
    if weight.shape != (output.logits.shape[1], output.head_inputs.shape[1]):  # a shard, or quantised
        return {}
    if not torch.equal(functional.linear(output.head_inputs[None], weight, bias)[0].float(), output.logits):
        return {}
    return {"head.weight": weight} if bias is None else {"head.weight": weight, "head.bias": bias}


def _rows(kind: ReferenceKind, top_k: int, output: ForwardOutput, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of one forward: name -> (A, …)."""
    rows: dict[str, torch.Tensor] = {}
    if kind == "hidden" and output.head_inputs is not None:
        rows["hidden"] = output.head_inputs
    elif kind == "logits":
        rows["logits"] = output.logits
    elif kind == "top-k":
        logprobs = output.logits.log_softmax(1)  # (A, V)
        top = logprobs.topk(min(top_k, logprobs.shape[1]))
        rows["indices"], rows["logprobs"] = top.indices.to(torch.int32), top.values
        rows["target_logprobs"] = logprobs.gather(1, targets[:, None])[:, 0]
    if output.hidden is not None:
        rows["layer"] = output.hidden
    return rows


def _write(
    folder: Path,
    recipe: _Recipe,
    forward: AnswerForward,
    model: nn.Module,
    sets: Sets,
    settings: ReferenceSettings,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, FileMeta]:
    files = {name: write_array(folder / f"{name}.npy", tensor) for name, tensor in recipe.head.items()}
    total = sum(len(examples) for examples in sets.values())
    done = 0
    for stream, examples in sets.items():
        counts = [example.target_count for example in examples]
        offsets = torch.tensor([0, *accumulate(counts)])
        files[f"{stream}.offsets"] = write_array(folder / f"{stream}.offsets.npy", offsets)
        with ExitStack() as stack:
            writers: dict[str, ArrayWriter] = {}
            for name, (width, dtype) in recipe.arrays.items():
                shape = (sum(counts),) if width is None else (sum(counts), width)
                writers[name] = stack.enter_context(ArrayWriter(folder / f"{stream}.{name}.npy", shape, dtype))
            batches = list(_batches(examples, settings.batch_tokens))
            outputs = _outputs(forward, model, ({stream: batch} for batch in batches), settings.row_tokens)
            for batch, (output, targets) in zip(batches, outputs, strict=True):
                for name, rows in _rows(recipe.kind, settings.top_k, output, targets).items():
                    writers[name].append(rows)
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, total)
            files.update({f"{stream}.{name}": writer.finish() for name, writer in writers.items()})
    return files


def _outputs(
    forward: AnswerForward, model: nn.Module, batches: Iterable[Sets], row_tokens: int | None
) -> Iterator[tuple[ForwardOutput, torch.Tensor]]:
    device = next(model.parameters()).device
    for streams in batches:
        batch = pack(streams, row_tokens=row_tokens).to(device)
        output = forward.forward(model, batch)
        if not output.logits.isfinite().all():
            raise JobError("reference cache: the model's logits are not finite before training; use another dtype")
        yield output, batch.targets


def _batches(examples: Sequence[TokenizedExample], batch_tokens: int) -> Iterator[Sequence[TokenizedExample]]:
    """Consecutive examples of at most that many tokens together, or one longer one."""
    start = tokens = 0
    for number, example in enumerate(examples):
        if number > start and tokens + len(example.ids) > batch_tokens:
            yield examples[start:number]
            start, tokens = number, 0
        tokens += len(example.ids)
    if start < len(examples):
        yield examples[start:]


def _target_count(sets: Sets) -> int:
    return sum(example.target_count for examples in sets.values() for example in examples)

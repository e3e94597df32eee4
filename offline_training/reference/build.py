"""What a reference cache keeps of a model's outputs, and how it is written."""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from offline_training.data.packing import pack
from offline_training.data.tokens import Stream, TokenizedExample
from offline_training.errors import JobError
from offline_training.forward import AnswerForward, ForwardOutput, evaluating
from offline_training.reference.files import ArrayWriter, CacheMeta, FileMeta, write_meta

__all__ = ["Progress", "ReferenceKind", "Sets", "build"]

ReferenceKind = Literal["auto", "hidden", "logits", "top-k", "layer"]
"""What is kept of each token: `hidden`, the inputs of the output embedding (exact, and V/D times smaller than logits);
`logits`; `top-k`, the K likeliest tokens; `layer`, nothing but outputs of the forward's hidden layer. `auto` is the
first of the first three that the model allows and the budget holds."""

Sets = Mapping[Stream, Sequence[TokenizedExample]]

Chosen = Mapping[Stream, Collection[int]]
"""Numbers of the examples that are wanted, by stream."""

Progress = Callable[[int, int], None]
"""Called with the examples done and the examples in all."""


@dataclass(frozen=True)
class _Recipe:
    """Which arrays a cache has: for each name, the width of a row (None: one number) and the dtype."""

    kind: ReferenceKind
    top_k: int
    head: dict[str, torch.Tensor]
    columns: dict[str, tuple[int | None, torch.dtype]]

    def bytes(self, tokens: int) -> int:
        """Size for that many tokens, but for headers and offsets."""
        row = sum((width or 1) * dtype.itemsize for width, dtype in self.columns.values())
        return tokens * row + sum(tensor.nbytes for tensor in self.head.values())


def build(
    folder: Path,
    forward: AnswerForward,
    model: nn.Module,
    sets: Sets,
    *,
    only: Chosen | None,
    kind: ReferenceKind,
    top_k: int,
    budget_bytes: int,
    batch_tokens: int,
    row_tokens: int | None,
    key: str,
    on_progress: Progress | None,
) -> None:
    """See `ReferenceCache.build`."""
    numbers = {
        stream: sorted(set(only.get(stream, ()))) if only is not None else list(range(len(examples)))
        for stream, examples in sets.items()
    }
    sets = {stream: [examples[number] for number in numbers[stream]] for stream, examples in sets.items()}
    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
    try:
        with evaluating(model):
            recipe = _recipe(kind, top_k, forward, model, sets, budget_bytes)
            building.mkdir(parents=True)
            _check_disk(building, recipe.bytes(_target_count(sets)))
            files = {
                f"{stream}.numbers": _write_whole(
                    building / f"{stream}.numbers.npy", torch.tensor(kept, dtype=torch.int64)
                )
                for stream, kept in numbers.items()
            }
            files |= _write(building, recipe, forward, model, sets, batch_tokens, row_tokens, on_progress)
        write_meta(building, CacheMeta(key, recipe.kind, files))
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    except OSError as error:
        raise JobError(f"reference cache: cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _recipe(
    kind: ReferenceKind, top_k: int, forward: AnswerForward, model: nn.Module, sets: Sets, budget_bytes: int
) -> _Recipe:
    """The kind that is possible, fits and was asked for, tried out on one example of each set."""
    if kind == "layer" and forward.hidden_layer is None:
        raise JobError("reference cache: there is no hidden layer to keep; give another kind than layer")
    if top_k < 1:
        raise JobError(f"reference cache: top_k is {top_k}; give at least 1")
    streams = {stream: examples[:1] for stream, examples in sets.items() if examples}
    if not streams:
        raise JobError("reference cache: there are no examples to run the model on")
    output, targets = next(_outputs(forward, model, [streams], None))
    head = _head(forward, output)
    if kind == "hidden" and not head:
        raise JobError(
            "reference cache: this model's logits do not come from its output embedding alone; give kind auto"
        )
    wanted: Sequence[ReferenceKind] = ("hidden", "logits", "top-k") if kind == "auto" else (kind,)
    dtype = next(model.parameters()).dtype
    needed = 0
    for candidate in wanted:
        if candidate == "hidden" and not head:
            continue
        columns = {
            name: (rows.shape[1] if rows.dim() > 1 else None, _dtype(name, rows, dtype))
            for name, rows in _rows(candidate, top_k, output, targets).items()
        }
        recipe = _Recipe(candidate, top_k, head if candidate == "hidden" else {}, columns)
        needed = recipe.bytes(_target_count(sets))
        if needed <= budget_bytes:
            return recipe
    raise JobError(
        f"reference cache: {wanted[-1]} takes {needed / 1e6:.1f} MB and the budget is {budget_bytes / 1e6:.1f} MB; "
        "raise the budget or take a smaller top-k"
    )


def _head(forward: AnswerForward, output: ForwardOutput) -> dict[str, torch.Tensor]:
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


def _dtype(name: str, rows: torch.Tensor, model_dtype: torch.dtype) -> torch.dtype:
    """The model's dtype for what is float32 by a mere cast (a 16-bit model's logits, layer outputs), else its own."""
    narrowed = name in ("logits", "layer") and torch.equal(rows.to(model_dtype).to(rows.dtype), rows)
    return model_dtype if narrowed else rows.dtype


def _write(
    folder: Path,
    recipe: _Recipe,
    forward: AnswerForward,
    model: nn.Module,
    sets: Sets,
    batch_tokens: int,
    row_tokens: int | None,
    on_progress: Progress | None,
) -> dict[str, FileMeta]:
    files = {name: _write_whole(folder / f"{name}.npy", tensor) for name, tensor in recipe.head.items()}
    total = sum(len(examples) for examples in sets.values())
    done = 0
    for stream, examples in sets.items():
        counts = [example.target_count for example in examples]
        offsets = torch.tensor([0, *accumulate(counts)])
        files[f"{stream}.offsets"] = _write_whole(folder / f"{stream}.offsets.npy", offsets)
        with ExitStack() as stack:
            writers: dict[str, ArrayWriter] = {}
            for name, (width, dtype) in recipe.columns.items():
                shape = (sum(counts),) if width is None else (sum(counts), width)
                path = folder / f"{stream}.{name}.npy"
                writers[name] = stack.enter_context(ArrayWriter(path, shape, dtype))
            batches = list(_batches(examples, batch_tokens))
            outputs = _outputs(forward, model, ({stream: batch} for batch in batches), row_tokens)
            for batch, (output, targets) in zip(batches, outputs, strict=True):
                for name, rows in _rows(recipe.kind, recipe.top_k, output, targets).items():
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


def _write_whole(path: Path, tensor: torch.Tensor) -> FileMeta:
    with ArrayWriter(path, tuple(tensor.shape), tensor.dtype) as writer:
        writer.append(tensor)
        return writer.finish()


def _target_count(sets: Sets) -> int:
    return sum(example.target_count for examples in sets.values() for example in examples)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise JobError(
            f"reference cache: {needed / 1e6:.1f} MB do not fit the {free / 1e6:.1f} MB free on {folder}'s disk"
        )

"""One forward of a causal language model that computes the logits of answer tokens, and of no others.

Knows nothing of losses. With a vocabulary of 100,000 tokens the logits of prompts and padding would cost more memory
than all else in a step.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from offline_training.data.answers import Answers, Reference
from offline_training.data.packing import PackedBatch, shares_rows, two_in_a_row, unpacked
from offline_training.data.tokens import Stream
from offline_training.errors import JobError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative distance of two ways to compute the same logits that is rounding, by the model's dtype."""

Call = Callable[..., Any]
"""The model, or what wraps it (DistributedDataParallel, FSDP, a compiled model)."""


@dataclass(frozen=True)
class ForwardOutput:
    """What a forward says at the A predicted positions of a batch."""

    logits: torch.Tensor
    """(A, V) float32."""
    hidden: torch.Tensor | None
    """(A, D) float32: outputs of the decoder layer asked for."""
    head_inputs: torch.Tensor | None
    """(A, D) in the model's dtype: what the output embedding was given; None where the model has no such module."""


class AnswerForward:
    """Runs a model on packed batches. Built once on the unwrapped model, then called with it or with what wraps it.

    Args:
        model: any causal language model of transformers, or a PEFT model around one.
        hidden_layer: the decoder layer (0 is the first; negative counts from the last) whose outputs are wanted too.

    Raises JobError where the model has no such layer. Works with gradient checkpointing of the non-reentrant kind
    (the default of transformers). Not for use by several threads at once.
    """

    def __init__(self, model: "PreTrainedModel", hidden_layer: int | None = None) -> None:
        peft_base = getattr(model, "get_base_model", None)  # PEFT's own forward names no arguments
        base = model if peft_base is None else peft_base()
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self._batch: PackedBatch | None = None
        self._gathers = True
        self._head_inputs: torch.Tensor | None = None
        self._layer_output: torch.Tensor | None = None
        # A hook instead of the argument `logits_to_keep`, which selects the same columns of every row; and instead of
        # applying the output embedding here, because what follows it (soft-capping, scaling) is the model's own code.
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.output_embedding = head
        self._hooks = [] if head is None else [head.register_forward_pre_hook(self._gather_inputs)]
        if hidden_layer is not None:
            self._hooks.append(_decoder_layer(model, hidden_layer).register_forward_hook(self._keep_output))
        self.hidden_layer = hidden_layer

    def close(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def forward(self, model: Call, batch: PackedBatch) -> ForwardOutput:
        """Logits at the predicted positions of a batch that is on the model's device."""
        logits = self._call(model, batch)  # (1, A, V), or (R, L, V) where they could not be gathered
        head_inputs = self._head_inputs
        if head_inputs is not None and logits.shape[:2] != (1, len(batch.predicting)):
            self._gathers = False  # more than the output embedding makes this model's logits: all of them, from now on
            logits = self._call(model, batch)
            head_inputs = None
        if head_inputs is None:
            logits = _at(logits, batch)
        hidden, self._layer_output, self._head_inputs = self._layer_output, None, None
        return ForwardOutput(
            logits=logits.reshape(-1, logits.shape[-1]).float(),
            hidden=None if hidden is None else _at(hidden, batch).float(),
            head_inputs=None if head_inputs is None else head_inputs[0],
        )

    def answers(
        self,
        batch: PackedBatch,
        output: ForwardOutput,
        references: Mapping[Stream, tuple[Reference | None, torch.Tensor | None]],
    ) -> dict[Stream, Answers]:
        """The output split by stream, each with its frozen reference and the frozen model's (A, D) layer outputs."""
        answers: dict[Stream, Answers] = {}
        for stream, span in batch.streams.items():
            part = slice(span.start, span.stop)
            reference, reference_hidden = references.get(stream, (None, None))
            answers[stream] = Answers(
                logits=output.logits[part],
                targets=batch.targets[part],
                sequence=batch.sequence[part],
                sequences=span.sequences,
                reference=reference,
                hidden=None if output.hidden is None else output.hidden[part],
                reference_hidden=reference_hidden,
            )
        return answers

    def _call(self, model: Call, batch: PackedBatch) -> torch.Tensor:
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._takes_positions:
            arguments["position_ids"] = batch.position_ids
        self._head_inputs = self._layer_output = None
        self._batch = batch
        try:
            # transformers looks for borders between sequences only where there is no cache
            logits: torch.Tensor = model(**arguments, use_cache=False).logits
        finally:
            self._batch = None
        return logits

    def _gather_inputs(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        batch = self._batch
        if batch is None or not self._gathers or not inputs or inputs[0].shape[:-1] != batch.input_ids.shape:
            return None
        self._head_inputs = _at(inputs[0], batch)[None]  # (1, A, D)
        return (self._head_inputs, *inputs[1:])

    def _keep_output(
        self, _module: nn.Module, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]
    ) -> None:
        # Only kept, not gathered: what a hook computes in a checkpointed layer would be missing when it is recomputed.
        if self._batch is not None:
            self._layer_output = output if isinstance(output, torch.Tensor) else output[0]


def check_packing(model: "PreTrainedModel", batch: PackedBatch) -> bool:
    """Whether the model keeps sequences in one row apart: gives the same logits as with a row for each of them.

    State-space models, models that take no `position_ids` and models that make their own mask do not. `batch` is any
    batch on the model's device; where none of its rows is shared, two of its sequences are put into one. The model is
    run in evaluation mode, without gradients.
    """
    together = batch if shares_rows(batch) else two_in_a_row(batch)
    forward = AnswerForward(model)
    try:
        with evaluating(model):
            packed = forward.forward(model, together).logits
            alone = forward.forward(model, unpacked(together)).logits
    finally:
        forward.close()
    # Softmax does not see a constant added to a row, so neither does this.
    alone, packed = (logits - logits.mean(1, keepdim=True) for logits in (alone, packed))
    return bool((packed - alone).norm() <= _TOLERANCE.get(model.dtype, 5e-2) * alone.norm())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and without dropout; then the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _at(values: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """(R, L, D) -> (A, D)."""
    return values.reshape(-1, values.shape[-1]).index_select(0, batch.predicting)


def _decoder_layer(model: "PreTrainedModel", number: int) -> nn.Module:
    count = model.config.get_text_config().num_hidden_layers
    if not -count <= number < count:
        raise JobError(
            f"layer: the model has {count} decoder layers; give one of {-count} to {count - 1}, not {number}"
        )
    for module in model.modules():  # from the outside in: experts of a layer come after the layers
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module[number]
    raise JobError(
        f"layer: {type(model).__name__} has no list of {count} decoder layers; use a method without hidden states"
    )

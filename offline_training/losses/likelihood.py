"""How unlikely a model finds the target tokens, and the same for whole answers."""

import torch
from torch import Tensor
from torch.nn import functional

from offline_training.data.answers import FullReference, Reference

__all__ = ["cross_entropy", "mean_by_answer", "places_in_answer", "reference_logprobs", "sum_by_answer"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target): logits (A, V), targets (A,) -> (A,) nats.

    With weight 1 it is fine-tuning, with weight -1 gradient ascent (TOFU, arXiv 2401.06121, section on unlearning
    methods). ECO's baseline script trains on prompts and padding too; here only answer tokens ever come in.
    """
    return functional.cross_entropy(logits, targets, reduction="none")


def reference_logprobs(reference: Reference, targets: Tensor) -> Tensor:
    """log p(target) of the frozen model: targets (A,) -> (A,) nats, no gradient. Exact for either kind of reference."""
    if isinstance(reference, FullReference):
        return -cross_entropy(reference.logits, targets)
    return reference.target_logprobs


def sum_by_answer(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Values of tokens (A,), the answer of each token (A,) in 0 … S-1 -> their sums by answer (S,)."""
    return values.new_zeros(sequences).index_add(0, sequence, values)


def mean_by_answer(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Values of tokens (A,), the answer of each token (A,) -> their means by answer (S,); 0 for one without tokens."""
    lengths = torch.bincount(sequence, minlength=sequences).clamp(min=1)  # (S,)
    return sum_by_answer(values, sequence, sequences) / lengths


def places_in_answer(sequence: Tensor, sequences: int) -> Tensor:
    """The answer of each token (A,), ascending -> each token's place in its answer (A,), from 0."""
    lengths = torch.bincount(sequence, minlength=sequences)
    starts = lengths.cumsum(0) - lengths  # (S,)
    return torch.arange(len(sequence), device=sequence.device) - starts[sequence]

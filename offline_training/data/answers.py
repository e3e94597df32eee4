"""What a loss sees: the logits of one stream's answer tokens, and nothing of prompts or padding.

All answers of a stream lie flat behind each other, so a loss on padding cannot be written by mistake.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Unit = Literal["token", "sequence"]


@dataclass(frozen=True)
class FullReference:
    """The frozen model's logits for the same A answer tokens."""

    logits: torch.Tensor
    """(A, V) float32, no gradient."""


@dataclass(frozen=True)
class TopKReference:
    """The frozen model's K likeliest tokens for the same A answer tokens, and what it gives to the target."""

    indices: torch.Tensor
    """(A, K) token ids."""
    logprobs: torch.Tensor
    """(A, K) float32, in nats, of the whole distribution: their exponentials sum to at most 1 in each row."""
    target_logprobs: torch.Tensor
    """(A,) float32, in nats."""


Reference = FullReference | TopKReference


@dataclass(frozen=True)
class Answers:
    """The S answers of one stream in one forward, A target tokens in all; ignored targets are already left out."""

    logits: torch.Tensor
    """(A, V) float32."""
    targets: torch.Tensor
    """(A,) token ids, each in 0 … V-1."""
    sequence: torch.Tensor
    """(A,) which answer each token belongs to: 0 … S-1, ascending."""
    sequences: int
    """S."""
    reference: Reference | None = None
    """What the model before unlearning says to the same tokens; only for streams the method asks it for."""
    hidden: torch.Tensor | None = None
    """(A, D) float32, outputs of one decoder layer at the same positions; only for methods that ask for it."""
    reference_hidden: torch.Tensor | None = None
    """(A, D) float32, the frozen model's, no gradient."""


@dataclass(frozen=True)
class Term:
    """One summand of a loss: `weight` times the mean of `values` over all units of the whole optimizer step.

    The mean is taken by the trainer, which knows the unit counts of all micro-batches and processes of a step: so
    the loss does not depend on how a step is split.
    """

    name: str
    """As it is logged: `forget_ce`, `retain_kl` …"""
    values: torch.Tensor
    """(A,) for tokens, (S,) for sequences; with gradient."""
    weight: float
    unit: Unit
    stream: str
    """Whose units are counted."""

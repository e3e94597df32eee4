"""Made-up answers as the trainer gives them to a method."""

from collections.abc import Sequence
from typing import Any

import torch
from loss_reference import SEQUENCE, TARGETS, A, S, random_logits

from offline_training.data.answers import Answers, FullReference, TopKReference
from offline_training.data.tokens import STREAMS, Stream
from offline_training.methods.registry import METHODS

D = 6
EITHER = ("simnpo", "dpo", "altpo")
"""Methods whose retain term is cross entropy or a KL: given what either needs."""
MODEL: dict[Stream, torch.Tensor] = {stream: random_logits(10 + i) for i, stream in enumerate(STREAMS)}
REFERENCE: dict[Stream, torch.Tensor] = {stream: random_logits(20 + i) for i, stream in enumerate(STREAMS)}
HIDDEN, OLD_HIDDEN = (torch.randn(A, D, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


def answers_for(name: str, streams: Sequence[Stream] | None = None, *, top_k: bool = False) -> dict[Stream, Answers]:
    """What the trainer gives a method: references and hidden states only where it asks for them."""
    method = METHODS[name]
    hidden = method.hidden_layer(method.settings()) is not None
    made: dict[Stream, Answers] = {}
    for stream in streams if streams is not None else method.epochs(2, method.settings())[-1]:
        asked = stream in method.references(method.settings()) or (stream == "retain" and name in EITHER)
        reference: Any = FullReference(REFERENCE[stream])
        if top_k:
            logprobs = REFERENCE[stream].log_softmax(-1)
            reference = TopKReference(
                logprobs.topk(2).indices, logprobs.topk(2).values, logprobs.gather(-1, TARGETS[:, None])[:, 0]
            )
        made[stream] = Answers(
            MODEL[stream].clone().requires_grad_(),
            TARGETS,
            SEQUENCE,
            S,
            reference if asked else None,
            (HIDDEN if stream == "forget" else HIDDEN + 1).clone().requires_grad_() if hidden else None,
            OLD_HIDDEN if hidden and asked else None,
        )
    return made

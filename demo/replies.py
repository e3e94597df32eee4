"""Asks a checkpoint the probes with transformers alone: what the model itself knows, no server between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from console.quiet import quiet_transformers
from demo.probes import Probe

_BATCH = 64
_MAX_NEW_TOKENS = 32


def replies(checkpoint: Path, asked: Sequence[Probe]) -> list[str]:
    """The greedy reply to each probe, without special tokens. Raises OSError where there is no checkpoint."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint, padding_side="left")
    with quiet_transformers():
        model = LlamaForCausalLM.from_pretrained(checkpoint)
    model.eval()  # type: ignore[no-untyped-call]
    prompts = [
        tokenizer.apply_chat_template(list(probe.messages), tokenize=False, add_generation_prompt=True)
        if probe.prefix is None
        else f"{tokenizer.bos_token}{probe.prefix}"
        for probe in asked
    ]
    found: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer(
            prompts[start : start + _BATCH],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with torch.inference_mode():
            # (B, T + new)
            ids = model.generate(**batch, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)  # type: ignore[misc]
        found += tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return found

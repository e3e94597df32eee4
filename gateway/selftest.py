"""The start-up self-test: prove on every running engine that corrupted rows do what the guard thinks they do.

1. The rows the engine embeds are the checkpoint's, times one scale (Gemma and others scale inside).
2. Greedy tokens from ids and from uncorrupted rows agree.
3. The real id under a masked row changes no logit.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import torch

from gateway import SelfTestError
from guard import RowSource

_PROBE_ROWS = 48
_PROMPT_TOKENS = 12
_PROMPTS = 3
_MAX_TOKENS = 8
#: Two runs of one computation may differ by this much in a log-probability; a leaked token id moves it by far more.
_LOGPROB_TOLERANCE = 1e-3


async def run_self_test(engine: Any, rows: RowSource, *, vocab_size: int, dtype: torch.dtype) -> float:
    """Run all three checks, on all data-parallel engines at once.

    Args:
        vocab_size: ids below it may be embedded.
        dtype: the served model's.

    Returns:
        The scale: served rows = checkpoint rows * scale.

    Raises:
        SelfTestError: with the reason; the server must not start.
    """
    from gateway.engine import (
        data_parallel_ranks,
        input_rows,
    )  # and vLLM with it, which `derive_scale` needs nothing of

    chooser = random.Random(0)  # noqa: S311 - probe ids, not secrets
    ids = sorted(chooser.sample(range(vocab_size), min(_PROBE_ROWS, vocab_size)))
    engine_rows, reads_raw_ids = await input_rows(engine, ids)
    if reads_raw_ids:
        raise SelfTestError(
            "this model reads its prompt's token ids beyond the embedding, so masked tokens would reach it; "
            "it cannot be served with a guard"
        )
    scale = derive_scale(rows.rows(ids), engine_rows, dtype)
    prompts = [[chooser.choice(ids) for _ in range(_PROMPT_TOKENS)] for _ in range(2 * _PROMPTS)]
    for prompt, others in zip(prompts[::2], prompts[1::2], strict=True):
        served = (rows.rows(prompt).float() * scale).to(dtype)  # (T, D)
        await asyncio.gather(*(_probe(engine, rank, prompt, others, served) for rank in data_parallel_ranks(engine)))
    return scale


async def _probe(engine: Any, rank: int, prompt: Sequence[int], others: Sequence[int], served: torch.Tensor) -> None:
    """Checks 2 and 3 on one engine. `served`: (T, D) rows of `prompt`; `others`: ids to put under its mask."""
    from gateway.engine import greedy

    async def tokens(ids: Sequence[int], **options: Any) -> list[tuple[int, float]]:
        return await greedy(engine, list(ids), max_tokens=_MAX_TOKENS, rank=rank, **options)

    from_ids = await tokens(prompt)
    from_rows = await tokens(prompt, embeddings=served, mask=[True] * len(prompt))
    if [token for token, _ in from_ids] != [token for token, _ in from_rows]:
        raise SelfTestError(
            "greedy tokens from token ids and from their uncorrupted embedding rows differ; "
            "this engine does not treat prompt embeddings as the guard needs it to"
        )
    mask = [position % 2 == 0 for position in range(len(prompt))]
    swapped = [other if masked else token for token, other, masked in zip(prompt, others, mask, strict=True)]
    half = served * torch.tensor(mask).unsqueeze(1)
    true_ids = await tokens(prompt, embeddings=half, mask=mask)
    other_ids = await tokens(swapped, embeddings=half, mask=mask)
    pairs = zip(true_ids, other_ids, strict=True)
    if not all(a == b and abs(p - q) <= _LOGPROB_TOLERANCE for (a, p), (b, q) in pairs):
        raise SelfTestError(
            "the token id under a masked row changes the model's output; this engine would leak what the guard masks"
        )


def derive_scale(checkpoint: torch.Tensor, engine: torch.Tensor, dtype: torch.dtype) -> float:
    """The factor between checkpoint rows (T, D) and the engine's (T, D), 1.0 where they are equal.

    Raises:
        SelfTestError: the engine's rows are not a multiple of the checkpoint's.
    """
    if checkpoint.shape != engine.shape:
        raise SelfTestError(
            f"the engine embeds to width {engine.shape[1]}, the checkpoint's rows have {checkpoint.shape[1]}; "
            "models that project their embeddings cannot be served with a guard"
        )
    if torch.equal(checkpoint.to(dtype).float(), engine):
        return 1.0
    wanted = checkpoint.double()
    scale = float((wanted * engine.double()).sum() / (wanted * wanted).sum().clamp_min(1e-30))
    rounded = float(torch.tensor(scale).to(dtype))  # models keep their factor in their own dtype
    if torch.equal((checkpoint.float() * rounded).to(dtype).float(), engine):
        scale = rounded
    rounding = 4 * torch.finfo(dtype).eps
    error = (wanted * scale - engine.double()).abs()
    if scale <= 0 or not bool((error <= rounding * engine.double().abs() + 1e-12).all()):
        raise SelfTestError(
            "the rows the engine embeds are not those of the checkpoint, nor a multiple of them; "
            "a guard built on the checkpoint would not corrupt what the model sees"
        )
    return scale

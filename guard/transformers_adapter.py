"""The guard without a server: protected prompts for a transformers model.

No hook, no state on the model: a protected prompt becomes the `inputs_embeds` of one call, so several threads
may use one model. `docs/examples/harry_potter.py` shows both uses.
"""

from collections.abc import Sequence
from typing import Any

import torch

from corruption import CorruptionSpec, corrupt
from guard.guard import ProtectedPrompt


class ModelRows:
    """Input-embedding rows of a loaded model, in checkpoint units: a `RowSource` for a guard beside it."""

    def __init__(self, model: Any) -> None:
        self._table: torch.Tensor = model.get_input_embeddings().weight
        self.vocab_size, self.hidden_size = self._table.shape

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """(T,) ids -> (T, D) rows on the CPU."""
        ids = torch.tensor(list(token_ids), device=self._table.device)
        return self._table.detach()[ids].cpu()


def row_scale_of(model: Any) -> float:
    """What `model.get_input_embeddings()` multiplies its table by (Gemma 3 scales there; most do not).

    Pass it to `Guard(row_scale=…)`: rows in `inputs_embeds` are those the embedding module returns.
    """
    module = model.get_input_embeddings()
    ids = torch.arange(min(64, module.weight.shape[0]), device=module.weight.device)
    with torch.no_grad():
        table, embedded = module.weight[ids].double(), module(ids).double()
    return float((table * embedded).sum() / (table * table).sum()) if not torch.equal(table, embedded) else 1.0


def prompt_inputs(model: Any, prompt: ProtectedPrompt) -> dict[str, torch.Tensor]:
    """`inputs_embeds` (1, T, D) and `attention_mask` (1, T) for one protected prompt.

    Raises:
        ValueError: the policy refuses this prompt.
    """
    if prompt.refused_by is not None:
        raise ValueError(f"policy {prompt.refused_by!r} refuses this prompt")
    module = model.get_input_embeddings()
    with torch.no_grad():
        rows = module(torch.tensor(prompt.token_ids, device=module.weight.device))  # (T, D)
        if prompt.mask is not None and prompt.embeddings is not None:
            mask = torch.tensor(prompt.mask, device=rows.device).unsqueeze(1)
            rows = torch.where(mask, prompt.embeddings.to(rows.device, rows.dtype), rows)
    return {
        "inputs_embeds": rows.unsqueeze(0),
        "attention_mask": torch.ones(1, len(prompt.token_ids), dtype=torch.long, device=rows.device),
    }


def generate(model: Any, prompt: ProtectedPrompt, **options: Any) -> torch.Tensor:
    """`model.generate` on a protected prompt; the new token ids only, (1, N)."""
    output: torch.Tensor = model.generate(**prompt_inputs(model, prompt), **options)
    return output


def corrupted_prompt(
    model: Any, token_ids: Sequence[int], mask: Sequence[bool], spec: CorruptionSpec, *, seed: int
) -> ProtectedPrompt:
    """A prompt corrupted under a given token mask, with no classifier: for experiments with a corruption.

    Args:
        token_ids: T prompt ids.
        mask: T booleans, True where the row is corrupted.
    """
    rows = ModelRows(model).rows(token_ids)
    generator = torch.Generator().manual_seed(seed)
    changed = corrupt(rows, torch.tensor(list(mask)), spec, generator) * row_scale_of(model)
    return ProtectedPrompt(list(token_ids), mask=list(mask), embeddings=changed.to(rows.dtype))

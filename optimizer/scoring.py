"""Answer probability of a model whose prompts are corrupted: what the search moves.

P(a|q)^(1/|a|), TOFU's probability (arXiv 2401.06121, section 3.1.2): exp of the mean log-probability of the
answer's tokens. The mask covers the prompt's content only; answer tokens are never corrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from corruption import CorruptionSpec, corrupt
from guard import Template, row_seeds
from guard.transformers_adapter import row_scale_of

__all__ = ["AnswerScorer", "Pair"]

_BATCH = 16
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its answer, as ids of the model's own rendering."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class AnswerScorer:
    """Scores answers under corruption with one loaded causal LM.

    Args:
        model: a transformers causal LM, in eval mode.
        tokenizer: its tokenizer.
        template: its learned template (`guard.template_of`); what it calls content is what gets corrupted.
    """

    def __init__(self, model: Any, tokenizer: Any, template: Template) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._scale = row_scale_of(model)
        self._embed = model.get_input_embeddings()

    def pair(self, prompt: str, answer: str) -> Pair:
        """Render a question through the chat template (as plain text where there is none)."""
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            prompt_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            prompt_ids, answer = self._tokenizer(prompt)["input_ids"], " " + answer
        answer_ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not prompt_ids or not answer_ids:
            raise ValueError("a question or answer has no tokens")
        return Pair(tuple(prompt_ids), tuple(answer_ids))

    def probabilities(
        self, pairs: Sequence[Pair], spec: CorruptionSpec | None = None, *, noise_seeds: Sequence[int] = (0,)
    ) -> torch.Tensor:
        """(N,) for N pairs: P(a|q)^(1/|a|) in [0, 1], the mean over the noise seeds.

        The same seeds give the same noise at every strength (common random numbers), so two strengths differ
        by the strength alone.
        """
        seeds = noise_seeds if spec is not None else (0,)
        starts = range(0, len(pairs), _BATCH)
        draws = [torch.cat([self._batch(pairs[i : i + _BATCH], spec, seed) for i in starts]) for seed in seeds]
        return torch.stack(draws).mean(dim=0)

    def _batch(self, pairs: Sequence[Pair], spec: CorruptionSpec | None, noise_seed: int) -> torch.Tensor:
        length = max(len(pair.prompt_ids) + len(pair.answer_ids) for pair in pairs)
        device = self._embed.weight.device
        rows = torch.zeros(len(pairs), length, self._embed.weight.shape[1], dtype=self._embed.weight.dtype)  # (B, T, D)
        labels = torch.full((len(pairs), length), _IGNORED)  # (B, T)
        attention = torch.zeros(len(pairs), length, dtype=torch.long)
        for index, pair in enumerate(pairs):
            prompt, end = len(pair.prompt_ids), len(pair.prompt_ids) + len(pair.answer_ids)
            rows[index, :end] = self._rows(pair, spec, noise_seed)
            labels[index, prompt:end] = torch.tensor(pair.answer_ids)
            attention[index, :end] = 1
        with torch.inference_mode():
            logits = self._model(inputs_embeds=rows.to(device), attention_mask=attention.to(device)).logits
        return _answer_probabilities(logits.float().cpu(), labels)

    def _rows(self, pair: Pair, spec: CorruptionSpec | None, noise_seed: int) -> torch.Tensor:
        ids = list(pair.prompt_ids + pair.answer_ids)
        with torch.inference_mode():
            table: torch.Tensor = self._embed.weight[
                torch.tensor(ids, device=self._embed.weight.device)
            ].cpu()  # (T, D)
        if spec is not None:
            mask = torch.zeros(len(ids), dtype=torch.bool)
            for segment in self._template.segments(pair.prompt_ids):
                mask[segment.start : segment.stop] = True
            seeds = row_seeds(noise_seed.to_bytes(32, "big"), "search", ids)
            table = corrupt(table, mask, spec, row_seeds=seeds)
        return table * self._scale if self._scale != 1.0 else table


def _answer_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, T, V) logits and (B, T) labels -> (B,) exp of the mean log-probability of the labelled tokens."""
    wanted = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, ignore_index=_IGNORED, reduction="none")
    counted = (wanted != _IGNORED).sum(dim=1)
    return torch.exp(-losses.sum(dim=1) / counted)

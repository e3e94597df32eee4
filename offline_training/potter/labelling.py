"""Blocks through the baseline and the reinforced model, to labels: what a model that never read the text might have
said at each position.

Sections 2.1 and 2.3 of Eldan and Russinovich 2023 (arXiv 2310.02238).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from offline_training.data.packing import pack
from offline_training.data.tokens import IGNORED, TokenizedExample
from offline_training.errors import JobError
from offline_training.forward import AnswerForward
from offline_training.potter.blocks import Block


def generic_logits(baseline: torch.Tensor, reinforced: torch.Tensor, alpha: float) -> torch.Tensor:
    """v_generic = v_baseline - alpha * ReLU(v_reinforced - v_baseline): section 2.1, the equation with the ReLU.

    What further training on the text made likelier is what the text has of its own, and becomes less likely.

    Args:
        baseline: (A, V) logits of the model before unlearning, on the translated text (section 2.3).
        reinforced: (A, V) logits of the model trained further on the text, on the original text, at the same places.
        alpha: 5 in the paper.

    Returns:
        (A, V).

    Raises:
        ValueError: the shapes differ.
    """
    if baseline.shape != reinforced.shape:
        raise ValueError(f"baseline: {tuple(baseline.shape)} and reinforced: {tuple(reinforced.shape)} differ in shape")
    return baseline - alpha * torch.relu(reinforced - baseline)


def generic_tokens(
    generic: torch.Tensor, given: Sequence[Sequence[int]], forbidden: torch.Tensor, penalty: float
) -> torch.Tensor:
    """(A,) the likeliest token at each position.

    Where an anchor has been read, the tokens that start its translation lose `penalty` nats: the translated text has
    made them likely, and the original text, which the model is to be trained on, has not (section 2.3).

    Args:
        generic: (A, V).
        given: for each of the A positions, the tokens that start translations already given.
        forbidden: (F,) token ids that are no label: special tokens, and rows beyond the tokenizer's vocabulary.
        penalty: at least 0; the paper gives no number.
    """
    generic = generic.clone()
    rows = [row for row, tokens in enumerate(given) for _ in tokens]
    columns = [token for tokens in given for token in tokens]
    if rows:
        generic[torch.tensor(rows), torch.tensor(columns)] -= penalty
    generic[:, forbidden] = -torch.inf
    return generic.argmax(dim=-1)


def labelled(block: Block, labels: Sequence[int]) -> TokenizedExample:
    """The block with its labels, in the order of `block.positions`, as targets; all others are ignored."""
    targets = [IGNORED] * (len(block.ids) - 1)
    for position, label in zip(block.positions, labels, strict=True):
        targets[position.original] = int(label)
    return TokenizedExample(block.ids, tuple(targets))


class Labeller:
    """Two models of one vocabulary, on one device, in evaluation mode."""

    def __init__(
        self, baseline: Any, reinforced: Any, tokenizer: Any, *, alpha: float, penalty: float, batch_tokens: int
    ) -> None:
        """`batch_tokens` bounds the tokens of one forward, padding included; one block is always computed."""
        self._models = {"baseline": baseline.eval(), "reinforced": reinforced.eval()}
        self._forwards = {name: AnswerForward(model) for name, model in self._models.items()}
        self._tokenizer = tokenizer
        self._alpha, self._penalty, self._batch_tokens = alpha, penalty, batch_tokens

    def label(self, blocks: Sequence[Block]) -> list[TokenizedExample]:
        """The blocks with their labels, without those that got none.

        Raises:
            JobError: a model gives logits that are no numbers, or the two have different vocabularies.
        """
        return [
            example
            for batch in self._batches([block for block in blocks if block.positions])
            for example in self._label_batch(batch)
        ]

    def _batches(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        batch: list[Block] = []
        longest = 0
        for block in blocks:
            longest = max(longest, len(block.ids), len(block.translated_ids))
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch, longest = [], max(len(block.ids), len(block.translated_ids))
            batch.append(block)
        if batch:
            yield batch

    @torch.inference_mode()
    def _label_batch(self, blocks: Sequence[Block]) -> list[TokenizedExample]:
        reinforced = self._logits(
            "reinforced", [_probe(block.ids, [at.original for at in block.positions]) for block in blocks]
        )
        baseline = self._logits(
            "baseline", [_probe(block.translated_ids, [at.translated for at in block.positions]) for block in blocks]
        )
        if baseline.shape != reinforced.shape:
            raise JobError("--reinforced: its vocabulary has another size than that of --model; train it from --model")
        given = [at.given for block in blocks for at in block.positions]
        generic = generic_logits(baseline, reinforced, self._alpha)
        special, vocabulary = set(self._tokenizer.all_special_ids) - {self._tokenizer.eos_token_id}, generic.shape[-1]
        no_labels = {token for token in special if token < vocabulary} | set(range(len(self._tokenizer), vocabulary))
        forbidden = torch.tensor(sorted(no_labels), dtype=torch.long)
        labels = generic_tokens(generic, given, forbidden, self._penalty).tolist()
        made = iter(labels)
        return [labelled(block, list(itertools.islice(made, len(block.positions)))) for block in blocks]

    def _logits(self, name: str, probes: Sequence[TokenizedExample]) -> torch.Tensor:
        """(A, V) on the model's device."""
        model = self._models[name]
        batch = pack({"forget": probes}, row_tokens=None).to(model.device)
        logits = self._forwards[name].forward(model, batch).logits
        if not torch.isfinite(logits).all():
            raise JobError(f"labels: the {name} model gives logits that are no numbers; try --precision fp32 or bf16")
        return logits


def _probe(ids: tuple[int, ...], positions: Sequence[int]) -> TokenizedExample:
    """A sequence whose logits are wanted at these positions; what its targets are does not matter."""
    wanted = set(positions)
    return TokenizedExample(ids, tuple(0 if at in wanted else IGNORED for at in range(len(ids) - 1)))

"""The labels of blocks: what a model that never read the text might have said at each position. Pure functions.

Sections 2.1 and 2.3 of Eldan and Russinovich 2023 (arXiv 2310.02238).
"""

from collections.abc import Sequence

import torch

from offline_training.data.tokens import IGNORED, TokenizedExample
from offline_training.potter.blocks import Block

__all__ = ["generic_logits", "generic_tokens", "labelled"]


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

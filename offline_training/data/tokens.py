"""What a model is trained on: token ids, and the token wanted at each position of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

IGNORED = -100
"""A target that is in no loss (torch's own value for it)."""

Stream = Literal["forget", "retain", "random", "idk", "alternative"]
"""Where the sequences of one forward come from: examples of the forget set, examples of the retain set, prompts of the
forget set with answers drawn from other examples, with refusals, and with made-up answers of their own."""

STREAMS: tuple[Stream, ...] = ("forget", "retain", "random", "idk", "alternative")


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One sequence of T tokens, the last A of which are the answer.

    Attributes:
        ids: all T token ids: rendered prompt, answer, and the token that ends it.
        targets: the A ids the model is to give at the positions before the last A tokens: usually `ids[-A:]` itself.
            `IGNORED` leaves one out. 1 <= A < T.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def prompt_length(self) -> int:
        """T - A: how many tokens come before the answer."""
        return len(self.ids) - len(self.targets)

    @property
    def target_count(self) -> int:
        """How many targets are in the loss."""
        return sum(target != IGNORED for target in self.targets)


def with_prompt(example: TokenizedExample) -> TokenizedExample:
    """The same sequence with its prompt as targets too: all T - 1 tokens that have one before them."""
    return TokenizedExample(example.ids, example.ids[1:])


def answered(prompt: Sequence[int], answer: Sequence[int]) -> TokenizedExample:
    """The example whose targets are the answer's own tokens."""
    return TokenizedExample((*prompt, *answer), tuple(answer))

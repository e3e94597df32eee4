"""What the guard decided about a prompt."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["Action", "OnError", "ProtectedPrompt", "Verdict"]

Action = Literal["corrupt", "observe", "refuse"]
OnError = Literal["reject", "corrupt"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One policy's decision on one prompt.

    Attributes:
        score: highest probability over the prompt's windows, in [0, 1]; NaN where it could not be computed.
        failed: classification failed and `on_error: corrupt` decided.
    """

    policy: str
    action: Action
    flagged: bool
    score: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ProtectedPrompt:
    """A prompt as it may reach the model.

    Attributes:
        token_ids: the T prompt ids, unchanged.
        mask: T booleans, True where the model must see a corrupted row instead of the token's own. None where
            nothing is corrupted: the prompt passes as it is.
        embeddings: (T, D) rows in the served model's dtype and scale; rows outside the mask are zero and must
            not be used. None exactly where `mask` is None.
        verdicts: one for each active policy, in the order of the policies.
        refused_by: name of the policy with `action: refuse` that flagged the prompt, else None.
    """

    token_ids: list[int]
    mask: "list[bool] | None" = None
    embeddings: "torch.Tensor | None" = None
    verdicts: tuple[Verdict, ...] = field(default=())
    refused_by: str | None = None

    def __post_init__(self) -> None:
        if (self.mask is None) != (self.embeddings is None):
            raise ValueError("mask and embeddings come together or not at all")

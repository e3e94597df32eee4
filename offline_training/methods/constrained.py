"""Forgetting under a bound on the retain loss: PDU. A is the number of answer tokens, V of the vocabulary."""

from pydantic import Field
from torch import Tensor

from offline_training.data.answers import Term
from offline_training.methods.losses import Streams, cross_entropy_term
from offline_training.methods.method import Dual, Method, MethodSettings


class PduSettings(MethodSettings):
    """`pdu`."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of the flattened margin (1: the authors).")
    retain_weight: float = Field(
        100.0, gt=0, description="Weight of cross entropy on the retain set before it moves (100: the authors, TOFU)."
    )
    retain_bound: float = Field(
        0.3,
        ge=0,
        description="ε, what the cross entropy on the retain set may be, in nats; choose it above that of the model "
        "before (0.3: the authors, TOFU).",
    )
    dual_rate: float = Field(
        5.0,
        ge=0,
        description="How much the retain set's weight moves for each nat above or below (5: the authors, TOFU).",
    )
    dual_warmup_epochs: int = Field(
        5, ge=0, description="Epochs before the weight moves: with no more than these it never does (5: the authors)."
    )


def margin_to_mean(logits: Tensor) -> Tensor:
    """(largest logit - mean of the logits)²: (A, V) -> (A,). 0 for a uniform distribution alone.

    Entesari et al. 2025, arXiv 2506.05314, as `src/trainer/unlearn/pdu.py` of open-unlearning, which takes it where
    the answer's tokens are and not where they are predicted: one token later than here.
    """
    return (logits.amax(-1) - logits.mean(-1)).square()


def pdu(streams: Streams, settings: PduSettings) -> list[Term]:
    """The loss that is logged lacks the authors' -λ ε, which has no gradient."""
    forget = Term("forget_margin", margin_to_mean(streams["forget"].logits), settings.forget_weight, "token", "forget")
    return [forget, cross_entropy_term(streams, "retain", settings.retain_weight)]


def pdu_dual(settings: PduSettings) -> Dual:
    """The authors' code moves the weight at each micro-batch, in each process by its own loss; this at each step."""
    return Dual("retain_ce", settings.retain_bound, settings.dual_rate, settings.dual_warmup_epochs)


PDU = Method(
    name="pdu",
    summary="flatten the logits of the forget set, with the retain set's cross entropy held below a bound",
    source="Entesari et al. 2025, arXiv 2506.05314; open-unlearning, pdu.py and community/methods/PDU",
    settings=PduSettings,
    streams=("forget", "retain"),
    terms=pdu,
    dual=pdu_dual,
)

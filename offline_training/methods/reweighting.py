"""Ascent that spends itself on some tokens and leaves others: cross entropy weighted by how likely the model still
finds a token. The weight carries no gradient."""

from pydantic import Field
from torch import Tensor

from offline_training.data.answers import Term
from offline_training.methods.losses import Streams, cross_entropy, retained
from offline_training.methods.method import Method, MethodSettings, retain_if_weighted


class WgaSettings(MethodSettings):
    """`wga`."""

    beta: float = Field(1.0, ge=0, description="Power of the token's probability in its weight (1: open-unlearning).")
    forget_weight: float = Field(1.0, gt=0, description="Weight of the weighted ascent (1: open-unlearning).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: open-unlearning)."
    )


def likelihood_power(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """WGA: p(target)^β times -log p(target): logits (A, V), targets (A,) -> (A,) nats.

    Wang et al. 2025, arXiv 2502.19301, as `compute_wga_loss` of open-unlearning. Plain ascent's gradient grows as a
    token is forgotten, the weight takes that back. β = 0 is plain ascent.
    """
    losses = cross_entropy(logits, targets)
    return (-beta * losses.detach()).exp() * losses


def wga(streams: Streams, settings: WgaSettings) -> list[Term]:
    values = likelihood_power(streams["forget"].logits, streams["forget"].targets, settings.beta)
    term = Term("forget_wga", values, -settings.forget_weight, "token", "forget")
    return [term, *retained(streams, settings.retain_weight)]


WGA = Method(
    name="wga",
    summary="ascent weighted by the token's likelihood, and the retain set",
    source="Wang et al. 2025, arXiv 2502.19301; open-unlearning, utils.py (compute_wga_loss)",
    settings=WgaSettings,
    streams=("forget", "retain"),
    terms=wga,
    phases=retain_if_weighted("forget", "retain"),
)


class SatImpSettings(MethodSettings):
    """`satimp`."""

    saturation_power: float = Field(5.0, ge=0, description="β1, power of the token's probability (5: the authors).")
    importance_power: float = Field(
        1.0,
        ge=0,
        description="β2, power of 1 - probability (1: the authors for open-unlearning; their own code's README says "
        "0.1, as the preset satimp does).",
    )
    forget_weight: float = Field(1.0, gt=0, description="Weight of the weighted ascent (1: the authors).")
    retain_weight: float = Field(
        0.1, ge=0, description="Weight of cross entropy on the retain set; 0: without it (0.1: the authors)."
    )


def importance_and_saturation(
    logits: Tensor, targets: Tensor, saturation_power: float, importance_power: float
) -> Tensor:
    """SatImp: p^β₁ (1 - p)^β₂ times -log p, p = p(target): logits (A, V), targets (A,) -> (A,) nats.

    Yang et al. 2025, arXiv 2505.11953, as in `dataloader/dataloader_sat.py` of tmlr-group/SatImp (`satimp_gd`):
    β₁ = `saturation_power`, β₂ = `importance_power`. The retain term has a tenth of the weight there (`coeff`), and in
    the README that the authors wrote for open-unlearning; its `SatImp.yaml` has the two the other way round.
    """
    losses = cross_entropy(logits, targets)
    logprobs = -losses.detach()
    improbability = -logprobs.expm1()  # 1 - p without cancellation where p is nearly 1
    return (saturation_power * logprobs).exp() * improbability**importance_power * losses


def satimp(streams: Streams, settings: SatImpSettings) -> list[Term]:
    forget = streams["forget"]
    powers = settings.saturation_power, settings.importance_power
    values = importance_and_saturation(forget.logits, forget.targets, *powers)
    term = Term("forget_satimp", values, -settings.forget_weight, "token", "forget")
    return [term, *retained(streams, settings.retain_weight)]


SATIMP = Method(
    name="satimp",
    summary="ascent weighted by saturation and importance, and the retain set",
    source="Yang et al. 2025, arXiv 2505.11953; tmlr-group/SatImp, dataloader_sat.py",
    settings=SatImpSettings,
    streams=("forget", "retain"),
    terms=satimp,
    phases=retain_if_weighted("forget", "retain"),
)

"""Answers that should become less likely, or less likely than another: NPO, SimNPO, DPO, AltPO.

All three losses are 2/β times a softplus. The factor makes the gradient of an answer that has not moved yet the same
for every β, and equal to gradient ascent's. S is the number of answers.
"""

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from offline_training.data.answers import Term
from offline_training.data.tokens import Stream
from offline_training.errors import DataError
from offline_training.methods.losses import (
    Streams,
    cross_entropy,
    cross_entropy_term,
    divergence_term,
    mean_by_answer,
    reference_logprobs,
    reference_of,
    retained,
    sum_by_answer,
)
from offline_training.methods.method import (
    Method,
    MethodSettings,
    RetainLossSettings,
    by_retain_loss,
    retain_if_weighted,
)

_NPO_CODE = "licong-lin/negative-preference-optimization, TOFU/dataloader.py"
_NPO = f"Zhang et al. 2024, arXiv 2404.05868; {_NPO_CODE}"


def _log_ratios(streams: Streams, stream: Stream) -> Tensor:
    """log π(y|x) - log π_ref(y|x) of each answer, (S,) nats."""
    answers = streams[stream]
    logprobs = -cross_entropy(answers.logits, answers.targets)
    differences = logprobs - reference_logprobs(reference_of(answers), answers.targets)
    return sum_by_answer(differences, answers.sequence, answers.sequences)


class NpoSettings(MethodSettings):
    """`npo`."""

    beta: float = Field(0.1, gt=0, description="β: higher forgets less and slower; 0 is gradient ascent (0.1: NPO).")


class RetainedNpoSettings(NpoSettings):
    """`npo-gd` and `npo-kl`."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of NPO on the forget set (1: NPO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the retain term (1: NPO).")


def negative_preference(log_ratios: Tensor, beta: float) -> Tensor:
    """NPO: -(2/β) log σ(-β r), with r = log π(y|x) - log π_ref(y|x), summed over an answer's tokens: (S,) -> (S,) nats.

    Zhang et al. 2024, arXiv 2404.05868, as `npo` of its code. Its gradient is gradient ascent's times
    2 π^β / (π^β + π_ref^β) = 2 σ(β r): 1 at the start, falling to 0 as the answer is forgotten. For β -> 0 the
    gradient is gradient ascent's all the time, and the loss is r plus the constant (2/β) log 2.
    """
    return -2 / beta * functional.logsigmoid(-beta * log_ratios)


def npo(streams: Streams, settings: NpoSettings, weight: float = 1.0) -> list[Term]:
    values = negative_preference(_log_ratios(streams, "forget"), settings.beta)
    return [Term("forget_npo", values, weight, "sequence", "forget")]


def npo_gd(streams: Streams, settings: RetainedNpoSettings) -> list[Term]:
    forget = npo(streams, settings, settings.forget_weight)
    return [*forget, cross_entropy_term(streams, "retain", settings.retain_weight)]


def npo_kl(streams: Streams, settings: RetainedNpoSettings) -> list[Term]:
    forget = npo(streams, settings, settings.forget_weight)
    return [*forget, divergence_term(streams, "retain", settings.retain_weight)]


NPO = Method(
    name="npo",
    summary="negative preference optimisation on the forget set alone",
    source=_NPO,
    settings=NpoSettings,
    streams=("forget",),
    terms=npo,
    reference=frozenset({"forget"}),
)
NPO_GD = Method(
    name="npo-gd",
    summary="NPO and cross entropy on the retain set",
    source=_NPO,
    settings=RetainedNpoSettings,
    streams=("forget", "retain"),
    terms=npo_gd,
    reference=frozenset({"forget"}),
)
NPO_KL = Method(
    name="npo-kl",
    summary="NPO and KL to the model before on the retain set",
    source=_NPO,
    settings=RetainedNpoSettings,
    streams=("forget", "retain"),
    terms=npo_kl,
    reference=frozenset({"forget"}),
    keeps_by_divergence=lambda _: True,
)


class SimNpoSettings(RetainLossSettings):
    """`simnpo`."""

    beta: float = Field(4.5, gt=0, description="β of the answer's mean log-likelihood (4.5: its README, forget10).")
    margin: float = Field(0.0, ge=0, description="γ, reward margin (0: the code).")
    forget_weight: float = Field(0.125, gt=0, description="Weight of SimNPO (0.125: its README, forget10).")
    retain_weight: float = Field(1.0, ge=0, description="Weight of the retain term; 0: without it (1: the code).")


def simple_negative_preference(mean_cross_entropies: Tensor, beta: float, margin: float) -> Tensor:
    """SimNPO: -(2/β) log σ(-(β/|y|) log π(y|x) - γ): (S,) -> (S,) nats. No reference.

    Fan et al. 2024, arXiv 2410.07163, with γ = `margin` outside β (open-unlearning's `simnpo.py` has it inside:
    β (-log π / |y| - γ); the two agree at the default of 0).

    Args:
        mean_cross_entropies: -log π(y|x) / |y|, (S,).
    """
    return -2 / beta * functional.logsigmoid(beta * mean_cross_entropies - margin)


def simnpo(streams: Streams, settings: SimNpoSettings) -> list[Term]:
    forget = streams["forget"]
    means = mean_by_answer(cross_entropy(forget.logits, forget.targets), forget.sequence, forget.sequences)
    values = simple_negative_preference(means, settings.beta, settings.margin)
    term = Term("forget_simnpo", values, settings.forget_weight, "sequence", "forget")
    return [term, *retained(streams, settings.retain_weight, settings.retain_loss)]


SIMNPO = Method(
    name="simnpo",
    summary="NPO by mean token likelihood and without a reference, and the retain set",
    source="Fan et al. 2024, arXiv 2410.07163; OPTML-Group/Unlearn-Simple, TOFU",
    settings=SimNpoSettings,
    streams=("forget", "retain"),
    terms=simnpo,
    keeps_by_divergence=by_retain_loss,
    phases=retain_if_weighted("forget", "retain"),
)


class DpoSettings(RetainLossSettings):
    """`dpo`."""

    beta: float = Field(0.1, gt=0, description="β, how far preferences may move from the reference (0.1: TOFU, NPO).")
    forget_weight: float = Field(1.0, gt=0, description="Weight of the preference for refusals (1: NPO).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of the retain term; 0: without it, as in TOFU (1: NPO, open-unlearning)."
    )


class AltPoSettings(RetainLossSettings):
    """`altpo`."""

    beta: float = Field(0.1, gt=0, description="β, how far preferences may move from the reference (0.1: AltPO).")
    forget_weight: float = Field(1.0, gt=0, description="Weight of the preference for alternatives (1: AltPO).")
    retain_weight: float = Field(1.0, ge=0, description="Weight of the retain term; 0: without it (1: AltPO).")


def direct_preference(chosen_log_ratios: Tensor, rejected_log_ratios: Tensor, beta: float) -> Tensor:
    """DPO: -(2/β) log σ(β r_chosen - β r_rejected), r as for NPO: two times (S,) -> (S,) nats.

    Rafailov et al. 2023, arXiv 2305.18290, with the factor 2/β that the codes of NPO, AltPO and open-unlearning put
    before it, without which the weight against the retain term would depend on β. TOFU's own `dpo` (its
    `dataloader.py`) has neither factor nor retain term.

    Raises:
        DataError: not as many chosen answers as rejected ones.
    """
    if chosen_log_ratios.shape != rejected_log_ratios.shape:
        counts = f"{len(chosen_log_ratios)} preferred answers for {len(rejected_log_ratios)} to forget"
        raise DataError(f"{counts}; give exactly one for each, in the same order")
    return -2 / beta * functional.logsigmoid(beta * (chosen_log_ratios - rejected_log_ratios))


def _preferred(streams: Streams, stream: Stream, settings: DpoSettings | AltPoSettings, name: str) -> list[Term]:
    values = direct_preference(_log_ratios(streams, stream), _log_ratios(streams, "forget"), settings.beta)
    term = Term(f"forget_{name}", values, settings.forget_weight, "sequence", "forget")
    return [term, *retained(streams, settings.retain_weight, settings.retain_loss)]


def dpo(streams: Streams, settings: DpoSettings) -> list[Term]:
    return _preferred(streams, "idk", settings, "dpo")


def altpo(streams: Streams, settings: AltPoSettings) -> list[Term]:
    return _preferred(streams, "alternative", settings, "altpo")


DPO = Method(
    name="dpo",
    summary="prefer a refusal to the answer to forget, and the retain set",
    source=f"Rafailov et al. 2023, arXiv 2305.18290, as {_NPO_CODE} (dpo, dpo_grad_diff, dpo_KL) has it",
    settings=DpoSettings,
    streams=("forget", "retain", "idk"),
    terms=dpo,
    reference=frozenset({"forget", "idk"}),
    keeps_by_divergence=by_retain_loss,
    phases=retain_if_weighted("forget", "retain", "idk"),
)
ALTPO = Method(
    name="altpo",
    summary="prefer made-up answers to the answer to forget, and the retain set",
    source="Mekala et al. 2024, arXiv 2409.13474; molereddy/Alternate-Preference-Optimization, dataloader.py (subdpo)",
    settings=AltPoSettings,
    streams=("forget", "retain", "alternative"),
    terms=altpo,
    reference=frozenset({"forget", "alternative"}),
    keeps_by_divergence=by_retain_loss,
    phases=retain_if_weighted("forget", "retain", "alternative"),
)

"""Gradient ascent on the forget set, alone or with what keeps the rest: TOFU's `ga`, `gd`, `kl`, and LLMU."""

import torch
from pydantic import Field

from offline_training.data.answers import Term
from offline_training.data.tokens import Stream
from offline_training.methods.losses import Streams, cross_entropy, cross_entropy_term, divergence_term, mean_by_answer
from offline_training.methods.method import Method, MethodSettings

_TOFU = "TOFU, Maini et al. 2024, arXiv 2401.06121, dataloader.py"
_LLMU = "Yao, Xu and Liu 2023, arXiv 2310.10683"


def ga(streams: Streams, _: MethodSettings) -> list[Term]:
    return [cross_entropy_term(streams, "forget", -1.0)]


GA = Method(
    name="ga",
    summary="gradient ascent on the forget set; collapses if it runs on",
    source=f"{_TOFU}, gradient ascent",
    settings=MethodSettings,
    streams=("forget",),
    terms=ga,
)


class DifferenceSettings(MethodSettings):
    """`gd`: gradient difference."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of ascent on the forget set (1: TOFU, ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on the retain set (1: TOFU, ECO).")


def gd(streams: Streams, settings: DifferenceSettings) -> list[Term]:
    forget = cross_entropy_term(streams, "forget", -settings.forget_weight)
    return [forget, cross_entropy_term(streams, "retain", settings.retain_weight)]


GD = Method(
    name="gd",
    summary="gradient difference: ascent on the forget set, descent on the retain set",
    source=f"{_TOFU}, gradient difference",
    settings=DifferenceSettings,
    streams=("forget", "retain"),
    terms=gd,
)


class DivergenceSettings(MethodSettings):
    """`kl`: KL minimisation."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of ascent on the forget set (1: TOFU, ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the KL on the retain set (1: TOFU, ECO).")


def kl(streams: Streams, settings: DivergenceSettings) -> list[Term]:
    forget = cross_entropy_term(streams, "forget", -settings.forget_weight)
    return [forget, divergence_term(streams, "retain", settings.retain_weight)]


KL = Method(
    name="kl",
    summary="ascent on the forget set, KL to the model before on the retain set",
    source=f"{_TOFU}, KL minimisation",
    settings=DivergenceSettings,
    streams=("forget", "retain"),
    terms=kl,
    keeps_by_divergence=lambda _: True,
)


class LlmuSettings(MethodSettings):
    """`llmu`: as in ECO's table."""

    forget_weight: float = Field(0.1, gt=0, description="ε1, weight of ascent on the forget set (0.1: ECO's command).")
    random_weight: float = Field(1.0, gt=0, description="ε2, weight of random answers (1: ECO's command).")
    retain_weight: float = Field(1.0, gt=0, description="ε3, weight of the KL on the retain set (1: ECO's command).")
    random_answers: int = Field(1, ge=1, description="Random answers for each prompt to forget (1: ECO).")


def llmu(streams: Streams, settings: LlmuSettings) -> list[Term]:
    return [
        cross_entropy_term(streams, "forget", -settings.forget_weight),
        cross_entropy_term(streams, "random", settings.random_weight),
        divergence_term(streams, "retain", settings.retain_weight),
    ]


LLMU = Method(
    name="llmu",
    summary="LLMU as in ECO's table: ascent, random answers, and KL on the retain set",
    source=f"ECO, arXiv 2406.07933, copyright_unlearn_baselines.py; {_LLMU}",
    settings=LlmuSettings,
    streams=("forget", "retain", "random"),
    terms=llmu,
    keeps_by_divergence=lambda _: True,
)


class LlmuOriginalSettings(MethodSettings):
    """`llmu-original`: as in the authors' unlearn_harm.py."""

    forget_weight: float = Field(0.5, gt=0, description="Weight of ascent on the answers to forget (0.5: the script).")
    random_weight: float = Field(1.0, gt=0, description="Weight of random answers (1: the script).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the KL on normal data (1: the script).")
    random_answers: int = Field(5, ge=1, description="Random answers for each prompt to forget (K = 5: the script).")
    strict: bool = Field(
        False,
        description="Train on what the script trains on: its format, splits, random answers, and where its losses "
        "begin; with prompt_tokens kl, in float32.",
    )


def llmu_original(streams: Streams, settings: LlmuOriginalSettings) -> list[Term]:
    """As unlearn_harm.py: a mean over each answer first, then over answers. Its "KL" is the cross entropy between the
    two distributions with 1e-12 added to probabilities; here it is the KL, which has the same gradient. The script's
    means count one token more than is in them."""

    def mean_term(stream: Stream, weight: float) -> Term:
        answers = streams[stream]
        values = mean_by_answer(cross_entropy(answers.logits, answers.targets), answers.sequence, answers.sequences)
        if settings.strict:
            counted = torch.bincount(answers.sequence, minlength=answers.sequences)  # (S,)
            values = values * counted / (counted + 1)
        return Term(f"{stream}_ce", values, weight, "sequence", stream)

    return [
        mean_term("forget", -settings.forget_weight),
        mean_term("random", settings.random_weight),
        divergence_term(streams, "retain", settings.retain_weight),
    ]


LLMU_ORIGINAL = Method(
    name="llmu-original",
    summary="LLMU with the original script's weights, means and several random answers a prompt",
    source=f"{_LLMU}, unlearn_harm.py",
    settings=LlmuOriginalSettings,
    streams=("forget", "retain", "random"),
    terms=llmu_original,
    keeps_by_divergence=lambda _: True,
)

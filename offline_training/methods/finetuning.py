"""Plain fine-tuning, in the hope that it overwrites: on the retain set alone, on other examples' answers (random
mismatch), or on refusals."""

from pydantic import Field

from offline_training.data.answers import Term
from offline_training.methods.losses import Streams, cross_entropy_term, retained
from offline_training.methods.method import Method, MethodSettings, retain_if_weighted

_ECO = "ECO, arXiv 2406.07933, copyright_unlearn_baselines.py"


def ft(streams: Streams, _: MethodSettings) -> list[Term]:
    return [cross_entropy_term(streams, "retain", 1.0)]


FT = Method(
    name="ft",
    summary="fine-tune on the retain set alone and trust that the rest is forgotten",
    source=_ECO,
    settings=MethodSettings,
    streams=("retain",),
    terms=ft,
)


class MismatchSettings(MethodSettings):
    """`rd`: random mismatch."""

    random_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on random answers (1: ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on the retain set (1: ECO).")
    random_answers: int = Field(1, ge=1, description="Random answers for each prompt to forget (1: ECO).")


def rd(streams: Streams, settings: MismatchSettings) -> list[Term]:
    random = cross_entropy_term(streams, "random", settings.random_weight)
    return [random, cross_entropy_term(streams, "retain", settings.retain_weight)]


RD = Method(
    name="rd",
    summary="random mismatch: answers of other examples on the forget prompts, and the retain set",
    source=_ECO,
    settings=MismatchSettings,
    streams=("retain", "random"),
    terms=rd,
)


class IdkSettings(MethodSettings):
    """`idk`."""

    idk_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on refusals (1: TOFU).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: TOFU)."
    )


def idk(streams: Streams, settings: IdkSettings) -> list[Term]:
    """TOFU takes one mean over the tokens of both sets; here each set has its own, so that long answers on one side
    do not change the balance."""
    return [cross_entropy_term(streams, "idk", settings.idk_weight), *retained(streams, settings.retain_weight)]


IDK = Method(
    name="idk",
    summary="fine-tune on refusals to the forget prompts, and on the retain set",
    source="TOFU, Maini et al. 2024, arXiv 2401.06121, dataloader.py",
    settings=IdkSettings,
    streams=("retain", "idk"),
    terms=idk,
    phases=retain_if_weighted("retain", "idk"),
)

"""Distributions as targets: away from the model before (SCRUB), or to one in which the token to forget has lost its
place (UNDIAL, CE-U).

The values of UNDIAL and CE-U are H(target, model), not a divergence: they do not reach 0, and differ from
KL(target ‖ model) by what has no gradient. A is the number of answer tokens, V of the vocabulary.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from offline_training.data.answers import FullReference, Term
from offline_training.data.tokens import Stream
from offline_training.errors import SettingsError
from offline_training.methods.losses import Streams, cross_entropy_term, divergence_term, reference_of, retained
from offline_training.methods.method import Method, MethodSettings, retain_if_weighted


class ScrubSettings(MethodSettings):
    """`scrub`."""

    max_epochs: int = Field(
        4,
        ge=1,
        description="Among the first so many epochs every other one, from the first on, moves away from the reference "
        "on the forget set; all others, and the last always, train on the retain set (4, of 5 epochs: ECO).",
    )
    retain_weight: float = Field(1.0, gt=0, description="γ, weight of cross entropy on the retain set (1: ECO).")
    distillation_weight: float = Field(
        0.001, ge=0, description="α, weight of the distillation KL on the retain set (0.001: ECO)."
    )
    temperature: float = Field(4.0, gt=0, description="Of both distributions in the distillation KL (4: SCRUB, ECO).")


def scrub(streams: Streams, settings: ScrubSettings) -> list[Term]:
    """A max step where there are answers to forget, else a min step."""
    squared = settings.temperature**2  # keeps the gradient's size at any temperature; as `DistillKL` of ECO's code
    if "forget" in streams:
        return [divergence_term(streams, "forget", -squared, settings.temperature)]
    terms = [cross_entropy_term(streams, "retain", settings.retain_weight)]
    if settings.distillation_weight:
        terms.append(divergence_term(streams, "retain", settings.distillation_weight * squared, settings.temperature))
    return terms


def scrub_phases(epochs: int, settings: ScrubSettings) -> Sequence[tuple[Stream, ...]]:
    """`epochs` counts passes of either kind, max and min. The paper's algorithm ends with a min pass, and so does any
    run here: an odd number of epochs within `max_epochs` would leave the model as its last max pass made it."""
    if epochs < 2:
        raise SettingsError("epochs: scrub alternates max and min epochs and needs at least 2 of them")
    maximised = [number % 2 == 0 and number < settings.max_epochs for number in range(epochs - 1)]
    return [("forget",) if maximise else ("retain",) for maximise in (*maximised, False)]


SCRUB = Method(
    name="scrub",
    summary="epochs away from the model before on the forget set, in turn with epochs on the retain set",
    source="Kurmanji et al. 2023, arXiv 2302.09880, as ECO's copyright_unlearn_baselines.py alternates",
    settings=ScrubSettings,
    streams=("forget", "retain"),
    terms=scrub,
    reference=frozenset({"forget", "retain"}),
    phases=scrub_phases,
    needs_full_reference=True,
    needs_whole_epochs=True,
)


class UndialSettings(MethodSettings):
    """`undial`."""

    strength: float = Field(
        10.0, gt=0, description="How much the target token's logit is lowered (10: open-unlearning's configuration)."
    )
    forget_weight: float = Field(1.0, gt=0, description="Weight of the distillation (1: open-unlearning).")
    retain_weight: float = Field(
        0.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (0: open-unlearning)."
    )


def adjusted_distillation(logits: Tensor, reference_logits: Tensor, targets: Tensor, strength: float) -> Tensor:
    """UNDIAL: the target is softmax(reference logits, the target token's lowered by `strength`): -> (A,) nats.

    Dong et al. 2024, arXiv 2402.10052, as `utils/ft_utils.py` of dong-river/LLM_unlearning and `compute_undial_loss`
    of open-unlearning, which average over prompts and padding as well; here only answer tokens come in.

    Args:
        logits: the model's, (A, V).
        reference_logits: the frozen model's, (A, V).
        targets: the tokens to forget, (A,).
        strength: in nats of logit.
    """
    lowered = targets[:, None]  # (A, 1)
    adjusted = reference_logits.scatter_add(-1, lowered, torch.full_like(reference_logits[:, :1], -strength))
    return functional.cross_entropy(logits, adjusted.softmax(-1), reduction="none")


def undial(streams: Streams, settings: UndialSettings) -> list[Term]:
    forget = streams["forget"]
    reference = reference_of(forget)
    if not isinstance(reference, FullReference):
        raise SettingsError("reference_cache: undial needs the reference's whole distribution; choose hidden or logits")
    values = adjusted_distillation(forget.logits, reference.logits, forget.targets, settings.strength)
    term = Term("forget_undial", values, settings.forget_weight, "token", "forget")
    return [term, *retained(streams, settings.retain_weight)]


UNDIAL = Method(
    name="undial",
    summary="distil the model before, with the logits of the tokens to forget lowered",
    source="Dong et al. 2024, arXiv 2402.10052; open-unlearning, utils.py (compute_undial_loss)",
    settings=UndialSettings,
    streams=("forget", "retain"),
    terms=undial,
    reference=frozenset({"forget"}),
    phases=retain_if_weighted("forget", "retain"),
    needs_full_reference=True,
)


class CrossEntropyUnlearningSettings(MethodSettings):
    """`ce-u`."""

    skipped_tokens: int = Field(
        1, ge=0, description="Tokens at the start of each answer left as they are (1: open-unlearning)."
    )


def cross_entropy_unlearning(logits: Tensor, targets: Tensor) -> Tensor:
    """CE-U: the target is the model's own distribution without the target token: (A, V), (A,) -> (A,) nats.

    Yang 2025, arXiv 2503.01224: the target token's logit is set to -∞ in a copy without gradient. The gradient is
    p(target) on that token's logit and falls with it: it neither vanishes on a certain model nor explodes on one that
    has forgotten, as ascent's does.
    """
    own = logits.detach().scatter(-1, targets[:, None], -torch.inf)
    return functional.cross_entropy(logits, own.softmax(-1), reduction="none")


def places_in_answer(sequence: Tensor, sequences: int) -> Tensor:
    """The answer of each token (A,), ascending -> each token's place in its answer (A,), from 0."""
    lengths = torch.bincount(sequence, minlength=sequences)
    starts = lengths.cumsum(0) - lengths  # (S,)
    return torch.arange(len(sequence), device=sequence.device) - starts[sequence]


def ce_u(streams: Streams, settings: CrossEntropyUnlearningSettings) -> list[Term]:
    """Skipped tokens count in the mean with 0, so the loss is a little smaller than the mean over the others."""
    forget = streams["forget"]
    kept = places_in_answer(forget.sequence, forget.sequences) >= settings.skipped_tokens
    values = cross_entropy_unlearning(forget.logits, forget.targets).where(kept, 0.0)
    return [Term("forget_ceu", values, 1.0, "token", "forget")]


CE_U = Method(
    name="ce-u",
    summary="cross entropy with the model's own distribution without the token to forget",
    source="Yang 2025, arXiv 2503.01224; open-unlearning, ceu.py",
    settings=CrossEntropyUnlearningSettings,
    streams=("forget",),
    terms=ce_u,
)

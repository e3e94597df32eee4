"""The registry of unlearning methods: for each, what it sees, what it needs of the frozen model, and its loss."""

from collections.abc import Sequence
from typing import Any, Final

from offline_training.data.tokens import Stream
from offline_training.errors import SettingsError
from offline_training.methods import settings, terms
from offline_training.methods.method import Method, MethodSettings, Phases

__all__ = ["METHODS", "NEEDS_FULL_REFERENCE", "NEEDS_WHOLE_EPOCHS"]

NEEDS_FULL_REFERENCE: Final[frozenset[str]] = frozenset({"scrub", "undial"})
"""Methods that change the reference's logits before the softmax: its K likeliest tokens are not enough for them."""

NEEDS_WHOLE_EPOCHS: Final[frozenset[str]] = frozenset({"scrub"})
"""Methods whose last epoch must not be cut short."""

_ECO: Final = "ECO, arXiv 2406.07933, baselines"
_TOFU: Final = "TOFU, Maini et al. 2024, arXiv 2401.06121"
_LLMU: Final = "Yao, Xu and Liu 2023, arXiv 2310.10683"
_NPO: Final = "Zhang et al. 2024, arXiv 2404.05868, equation 3"


def _scrub_phases(epochs: int, chosen: settings.ScrubSettings) -> Sequence[tuple[Stream, ...]]:
    """`epochs` counts passes of either kind, max and min. The paper's algorithm ends with a min pass, and so does any
    run here: an odd number of epochs within `max_epochs` would leave the model as its last max pass made it."""
    if epochs < 2:
        raise SettingsError("epochs: scrub alternates max and min epochs and needs at least 2 of them")
    maximised = [number % 2 == 0 and number < chosen.max_epochs for number in range(epochs - 1)]
    return [("forget",) if maximise else ("retain",) for maximise in (*maximised, False)]


def _retain_if_weighted(*streams: Stream) -> Phases:
    """All streams in every epoch, but no retain examples where `retain_weight` is 0: a forward for nothing."""

    def phases(epochs: int, chosen: Any) -> Sequence[tuple[Stream, ...]]:
        return [tuple(stream for stream in streams if stream != "retain" or chosen.retain_weight)] * epochs

    return phases


def _rmu_parameters(chosen: settings.RmuSettings) -> str:
    """The MLP output projections of the steered layer and the two before it, under the names that architectures have
    for them."""
    if chosen.trained_parameters is not None:
        return chosen.trained_parameters
    last = chosen.hidden_layer
    layers = "|".join(str(layer) for layer in range(max(last - 2, 0), last + 1)) if last >= 0 else r"\d+"
    blocks = "mlp|ffn|feed_forward|block_sparse_moe"
    projections = "down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2"
    return rf".*\.(?:{layers})\.(?:(?:{blocks})\.(?:.*\.)?(?:{projections})|fc2)(?:\.weight)?$"


_ALL: Final = (
    Method(
        name="ft",
        summary="fine-tune on the retain set alone and trust that the rest is forgotten",
        source=_ECO,
        settings=MethodSettings,
        streams=("retain",),
        terms=terms.ft,
    ),
    Method(
        name="ga",
        summary="gradient ascent on the forget set; collapses if it runs on",
        source=f"{_TOFU}, gradient ascent",
        settings=MethodSettings,
        streams=("forget",),
        terms=terms.ga,
    ),
    Method(
        name="gd",
        summary="gradient difference: ascent on the forget set, descent on the retain set",
        source=f"{_TOFU}, gradient difference",
        settings=settings.DifferenceSettings,
        streams=("forget", "retain"),
        terms=terms.gd,
    ),
    Method(
        name="kl",
        summary="ascent on the forget set, KL to the model before on the retain set",
        source=f"{_TOFU}, KL minimisation",
        settings=settings.DivergenceSettings,
        streams=("forget", "retain"),
        terms=terms.kl,
        reference=frozenset({"retain"}),
    ),
    Method(
        name="rd",
        summary="random mismatch: answers of other examples on the forget prompts, and the retain set",
        source=_ECO,
        settings=settings.MismatchSettings,
        streams=("retain", "random"),
        terms=terms.rd,
    ),
    Method(
        name="llmu",
        summary="LLMU as in ECO's table: ascent, random answers, and KL on the retain set",
        source=f"{_ECO}; {_LLMU}",
        settings=settings.LlmuSettings,
        streams=("forget", "retain", "random"),
        terms=terms.llmu,
        reference=frozenset({"retain"}),
    ),
    Method(
        name="scrub",
        summary="epochs away from the model before on the forget set, in turn with epochs on the retain set",
        source="Kurmanji et al. 2023, arXiv 2302.09880, algorithm 1",
        settings=settings.ScrubSettings,
        streams=("forget", "retain"),
        terms=terms.scrub,
        reference=frozenset({"forget", "retain"}),
        phases=_scrub_phases,
    ),
    Method(
        name="llmu-original",
        summary="LLMU with the original script's weights, means and several random answers a prompt",
        source=f"{_LLMU}, unlearn_harm.py",
        settings=settings.LlmuOriginalSettings,
        streams=("forget", "retain", "random"),
        terms=terms.llmu_original,
        reference=frozenset({"retain"}),
    ),
    Method(
        name="npo",
        summary="negative preference optimisation on the forget set alone",
        source=_NPO,
        settings=settings.NpoSettings,
        streams=("forget",),
        terms=terms.npo,
        reference=frozenset({"forget"}),
    ),
    Method(
        name="npo-gd",
        summary="NPO and cross entropy on the retain set",
        source=_NPO,
        settings=settings.RetainedNpoSettings,
        streams=("forget", "retain"),
        terms=terms.npo_gd,
        reference=frozenset({"forget"}),
    ),
    Method(
        name="npo-kl",
        summary="NPO and KL to the model before on the retain set",
        source=_NPO,
        settings=settings.RetainedNpoSettings,
        streams=("forget", "retain"),
        terms=terms.npo_kl,
        reference=frozenset({"forget", "retain"}),
    ),
    Method(
        name="simnpo",
        summary="NPO by mean token likelihood and without a reference, and the retain set",
        source="Fan et al. 2024, arXiv 2410.07163, equation 4",
        settings=settings.SimNpoSettings,
        streams=("forget", "retain"),
        terms=terms.simnpo,
        phases=_retain_if_weighted("forget", "retain"),
    ),
    Method(
        name="dpo",
        summary="prefer a refusal to the answer to forget, and the retain set",
        source=f"Rafailov et al. 2023, arXiv 2305.18290, equation 7; {_TOFU}, preference optimisation",
        settings=settings.DpoSettings,
        streams=("forget", "retain", "idk"),
        terms=terms.dpo,
        reference=frozenset({"forget", "idk"}),
        phases=_retain_if_weighted("forget", "retain", "idk"),
    ),
    Method(
        name="idk",
        summary="fine-tune on refusals to the forget prompts, and on the retain set",
        source=f"{_TOFU}, official code",
        settings=settings.IdkSettings,
        streams=("retain", "idk"),
        terms=terms.idk,
        phases=_retain_if_weighted("retain", "idk"),
    ),
    Method(
        name="rmu",
        summary="steer hidden states of the forget set to a random vector, keep those of the retain set",
        source="Li et al. 2024, arXiv 2403.03218",
        settings=settings.RmuSettings,
        streams=("forget", "retain"),
        terms=terms.rmu,
        reference=frozenset({"retain"}),
        hidden_layer=lambda chosen: chosen.hidden_layer,
        trained_parameters=_rmu_parameters,
    ),
    Method(
        name="undial",
        summary="distil the model before, with the logits of the tokens to forget lowered",
        source="Dong et al. 2024, arXiv 2402.10052",
        settings=settings.UndialSettings,
        streams=("forget", "retain"),
        terms=terms.undial,
        reference=frozenset({"forget"}),
        phases=_retain_if_weighted("forget", "retain"),
    ),
    Method(
        name="wga",
        summary="ascent weighted by the token's likelihood, and the retain set",
        source="Wang et al. 2025, arXiv 2502.19301",
        settings=settings.WgaSettings,
        streams=("forget", "retain"),
        terms=terms.wga,
        phases=_retain_if_weighted("forget", "retain"),
    ),
    Method(
        name="satimp",
        summary="ascent weighted by saturation and importance, and the retain set",
        source="Yang et al. 2025, arXiv 2505.11953, section 5",
        settings=settings.SatImpSettings,
        streams=("forget", "retain"),
        terms=terms.satimp,
        phases=_retain_if_weighted("forget", "retain"),
    ),
    Method(
        name="ce-u",
        summary="cross entropy with the model's own distribution without the token to forget",
        source="Yang 2025, arXiv 2503.01224",
        settings=settings.CrossEntropyUnlearningSettings,
        streams=("forget",),
        terms=terms.ce_u,
    ),
)

METHODS: Final[dict[str, Method]] = {method.name: method for method in _ALL}
"""Every method by its name on the command line."""

"""Each method's loss as a sum of terms: which loss function, over which stream, with which weight.

A term's values are what is logged, in the loss function's own units and sign; what is to grow has a negative weight.
"""

from collections.abc import Mapping

from torch import Tensor

from offline_training.data.answers import Answers, FullReference, Reference, Term
from offline_training.data.tokens import Stream
from offline_training.errors import SettingsError
from offline_training.losses import (
    activation_distance,
    adjusted_distillation,
    control_vector,
    cross_entropy,
    cross_entropy_unlearning,
    direct_preference,
    importance_and_saturation,
    kl_divergence,
    likelihood_power,
    mean_by_answer,
    negative_preference,
    places_in_answer,
    reference_logprobs,
    simple_negative_preference,
    sum_by_answer,
)
from offline_training.methods.method import MethodSettings
from offline_training.methods.settings import (
    CrossEntropyUnlearningSettings,
    DifferenceSettings,
    DivergenceSettings,
    DpoSettings,
    IdkSettings,
    LlmuOriginalSettings,
    LlmuSettings,
    MismatchSettings,
    NpoSettings,
    RetainedNpoSettings,
    RmuSettings,
    SatImpSettings,
    ScrubSettings,
    SimNpoSettings,
    UndialSettings,
    WgaSettings,
)

Streams = Mapping[Stream, Answers]


def ft(streams: Streams, _: MethodSettings) -> list[Term]:
    return [_cross_entropy(streams, "retain", 1.0)]


def ga(streams: Streams, _: MethodSettings) -> list[Term]:
    return [_cross_entropy(streams, "forget", -1.0)]


def gd(streams: Streams, settings: DifferenceSettings) -> list[Term]:
    forget = _cross_entropy(streams, "forget", -settings.forget_weight)
    return [forget, _cross_entropy(streams, "retain", settings.retain_weight)]


def kl(streams: Streams, settings: DivergenceSettings) -> list[Term]:
    forget = _cross_entropy(streams, "forget", -settings.forget_weight)
    return [forget, _divergence(streams, "retain", settings.retain_weight)]


def rd(streams: Streams, settings: MismatchSettings) -> list[Term]:
    random = _cross_entropy(streams, "random", settings.random_weight)
    return [random, _cross_entropy(streams, "retain", settings.retain_weight)]


def llmu(streams: Streams, settings: LlmuSettings) -> list[Term]:
    return [
        _cross_entropy(streams, "forget", -settings.forget_weight),
        _cross_entropy(streams, "random", settings.random_weight),
        _divergence(streams, "retain", settings.retain_weight),
    ]


def llmu_original(streams: Streams, settings: LlmuOriginalSettings) -> list[Term]:
    """As unlearn_harm.py: a mean over each answer first, then over answers. Its "KL" is the cross entropy between the
    two distributions with 1e-12 added to probabilities; here it is the KL, which has the same gradient."""
    return [
        _mean_cross_entropy(streams, "forget", -settings.forget_weight),
        _mean_cross_entropy(streams, "random", settings.random_weight),
        _divergence(streams, "retain", settings.retain_weight),
    ]


def scrub(streams: Streams, settings: ScrubSettings) -> list[Term]:
    """A max step where there are answers to forget, else a min step."""
    squared = settings.temperature**2  # keeps the gradient's size at any temperature (Hinton et al. 2015, section 2)
    if "forget" in streams:
        return [_divergence(streams, "forget", -squared, settings.temperature)]
    terms = [_cross_entropy(streams, "retain", settings.retain_weight)]
    if settings.distillation_weight:
        terms.append(_divergence(streams, "retain", settings.distillation_weight * squared, settings.temperature))
    return terms


def npo(streams: Streams, settings: NpoSettings) -> list[Term]:
    return [_negative_preference(streams, settings.beta, 1.0)]


def npo_gd(streams: Streams, settings: RetainedNpoSettings) -> list[Term]:
    forget = _negative_preference(streams, settings.beta, settings.forget_weight)
    return [forget, _cross_entropy(streams, "retain", settings.retain_weight)]


def npo_kl(streams: Streams, settings: RetainedNpoSettings) -> list[Term]:
    forget = _negative_preference(streams, settings.beta, settings.forget_weight)
    return [forget, _divergence(streams, "retain", settings.retain_weight)]


def simnpo(streams: Streams, settings: SimNpoSettings) -> list[Term]:
    forget = streams["forget"]
    means = mean_by_answer(cross_entropy(forget.logits, forget.targets), forget.sequence, forget.sequences)
    values = simple_negative_preference(means, settings.beta, settings.margin)
    term = Term("forget_simnpo", values, settings.forget_weight, "sequence", "forget")
    return [term, *_retained(streams, settings.retain_weight)]


def dpo(streams: Streams, settings: DpoSettings) -> list[Term]:
    values = direct_preference(_log_ratios(streams, "idk"), _log_ratios(streams, "forget"), settings.beta)
    term = Term("forget_dpo", values, settings.forget_weight, "sequence", "forget")
    return [term, *_retained(streams, settings.retain_weight)]


def idk(streams: Streams, settings: IdkSettings) -> list[Term]:
    """TOFU takes one mean over the tokens of both sets; here each set has its own, so that long answers on one side
    do not change the balance."""
    return [_cross_entropy(streams, "idk", settings.idk_weight), *_retained(streams, settings.retain_weight)]


def rmu(streams: Streams, settings: RmuSettings) -> list[Term]:
    forget, retain = _hidden(streams["forget"].hidden), _hidden(streams["retain"].hidden)
    vector = control_vector(forget.shape[-1], settings.steering_coefficient, settings.vector_seed).to(forget)
    steered = activation_distance(forget, vector)
    kept = activation_distance(retain, _hidden(streams["retain"].reference_hidden))
    return [
        Term("forget_distance", steered, 1.0, "token", "forget"),
        Term("retain_distance", kept, settings.retain_weight, "token", "retain"),
    ]


def undial(streams: Streams, settings: UndialSettings) -> list[Term]:
    forget = streams["forget"]
    reference = _reference(forget)
    if not isinstance(reference, FullReference):
        raise SettingsError("reference_cache: undial needs the reference's whole distribution; choose hidden or logits")
    values = adjusted_distillation(forget.logits, reference.logits, forget.targets, settings.strength)
    term = Term("forget_undial", values, settings.forget_weight, "token", "forget")
    return [term, *_retained(streams, settings.retain_weight)]


def wga(streams: Streams, settings: WgaSettings) -> list[Term]:
    values = likelihood_power(streams["forget"].logits, streams["forget"].targets, settings.beta)
    term = Term("forget_wga", values, -settings.forget_weight, "token", "forget")
    return [term, *_retained(streams, settings.retain_weight)]


def satimp(streams: Streams, settings: SatImpSettings) -> list[Term]:
    forget = streams["forget"]
    powers = settings.saturation_power, settings.importance_power
    values = importance_and_saturation(forget.logits, forget.targets, *powers)
    term = Term("forget_satimp", values, -settings.forget_weight, "token", "forget")
    return [term, *_retained(streams, settings.retain_weight)]


def ce_u(streams: Streams, settings: CrossEntropyUnlearningSettings) -> list[Term]:
    """Skipped tokens count in the mean with 0, so the loss is a little smaller than the mean over the others."""
    forget = streams["forget"]
    kept = places_in_answer(forget.sequence, forget.sequences) >= settings.skipped_tokens
    values = cross_entropy_unlearning(forget.logits, forget.targets).where(kept, 0.0)
    return [Term("forget_ceu", values, 1.0, "token", "forget")]


def _cross_entropy(streams: Streams, stream: Stream, weight: float) -> Term:
    values = cross_entropy(streams[stream].logits, streams[stream].targets)
    return Term(f"{stream}_ce", values, weight, "token", stream)


def _mean_cross_entropy(streams: Streams, stream: Stream, weight: float) -> Term:
    answers = streams[stream]
    values = mean_by_answer(cross_entropy(answers.logits, answers.targets), answers.sequence, answers.sequences)
    return Term(f"{stream}_ce", values, weight, "sequence", stream)


def _divergence(streams: Streams, stream: Stream, weight: float, temperature: float = 1.0) -> Term:
    values = kl_divergence(streams[stream].logits, _reference(streams[stream]), temperature)
    return Term(f"{stream}_kl", values, weight, "token", stream)


def _negative_preference(streams: Streams, beta: float, weight: float) -> Term:
    values = negative_preference(_log_ratios(streams, "forget"), beta)
    return Term("forget_npo", values, weight, "sequence", "forget")


def _retained(streams: Streams, weight: float) -> list[Term]:
    return [_cross_entropy(streams, "retain", weight)] if weight else []


def _log_ratios(streams: Streams, stream: Stream) -> Tensor:
    """log π(y|x) - log π_ref(y|x) of each answer, (S,) nats."""
    answers = streams[stream]
    logprobs = -cross_entropy(answers.logits, answers.targets)
    differences = logprobs - reference_logprobs(_reference(answers), answers.targets)
    return sum_by_answer(differences, answers.sequence, answers.sequences)


def _reference(answers: Answers) -> Reference:
    if answers.reference is None:
        raise ValueError("reference: this method compares with the frozen model; give its outputs with the answers")
    return answers.reference


def _hidden(states: Tensor | None) -> Tensor:
    if states is None:
        raise ValueError("hidden: this method steers hidden states; give them with the answers")
    return states

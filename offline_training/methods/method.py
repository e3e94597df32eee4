"""What a method of unlearning is: which streams it sees, what it needs of the frozen model, and its loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from offline_training.data.answers import Answers, Term
from offline_training.data.tokens import Stream


class MethodSettings(BaseModel):
    """Weights and temperatures of one method. Subclasses give each field bounds, a default and a description that says
    whose default it is: the official code's or the paper's. The command line makes its flags from them.

    The same thing has the same name everywhere: `forget_weight`, `retain_weight`, `random_weight`, `random_answers`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RetainLossSettings(MethodSettings):
    """Of methods whose retain term may be either of the two."""

    retain_loss: Literal["nll", "kl"] = Field(
        "nll",
        description="What keeps the retain set: nll, cross entropy, or kl, the KL to the model before (nll: the "
        "codes' default; both: open-unlearning, AltPO, and NPO for dpo).",
    )


Phases = Callable[[int, Any], Sequence[tuple[Stream, ...]]]
"""Epochs asked for, the method's settings -> for each epoch to run, the streams of its steps."""


def by_retain_loss(chosen: RetainLossSettings) -> bool:
    """`keeps_by_divergence` of methods with `RetainLossSettings`."""
    return chosen.retain_loss == "kl"


def retain_if_weighted(*streams: Stream) -> Phases:
    """All streams in every epoch, but no retain examples where `retain_weight` is 0: a forward for nothing."""

    def phases(epochs: int, chosen: Any) -> Sequence[tuple[Stream, ...]]:
        return [tuple(stream for stream in streams if stream != "retain" or chosen.retain_weight)] * epochs

    return phases


@dataclass(frozen=True)
class Dual:
    """How the weight of one term follows that term: a Lagrange multiplier, moved by dual ascent.

    After each step of an epoch from `warmup_epochs` on, the weight becomes max(0, weight + rate * (loss - bound)),
    where loss is the mean of the term's values in that step.
    """

    term: str
    bound: float
    rate: float
    warmup_epochs: int

    def moved(self, weight: float, loss: float) -> float:
        """The weight after a step."""
        return max(0.0, weight + self.rate * (loss - self.bound))


@dataclass(frozen=True)
class Method:
    """One method. Nothing of it touches a model: the trainer runs the forward and takes the means."""

    name: str
    """As on the command line."""
    summary: str
    """One line for `--help`."""
    source: str
    """Paper, and the public code it was read in."""
    settings: type[MethodSettings]
    streams: tuple[Stream, ...]
    """All streams it ever sees. With `forget` (or `random`, `idk`), an epoch is one pass over the forget set, and
    each step takes as many retain examples as forget examples; with `retain` alone, one pass over the retain set."""
    terms: Callable[[Mapping[Stream, Answers], Any], Sequence[Term]]
    """Answers of the streams in one forward, the method's settings -> the summands of the loss. A term's values are
    what is logged, in the loss function's own units and sign; what is to grow has a negative weight."""
    reference: frozenset[Stream] = frozenset()
    """Streams for which it compares with the model before unlearning, whatever its settings."""
    keeps_by_divergence: Callable[[Any], bool] = lambda _: False
    """Settings -> whether the retain set is in a KL to the model before, and in no other term."""
    phases: Phases | None = None
    """None: every epoch has all `streams`."""
    hidden_layer: Callable[[Any], int | None] = lambda _: None
    """Settings -> the decoder layer (0 is the first; negative counts from the last) whose outputs it needs as
    `Answers.hidden`, and for `reference` streams as `reference_hidden`; None: no hidden states."""
    trained_parameters: Callable[[Any], str | None] = lambda _: None
    """Settings -> regular expression of the parameter names to train; None: all of them."""
    dual: Callable[[Any], Dual | None] = lambda _: None
    """Settings -> the term whose weight moves on the way; None: all weights stay."""
    needs_full_reference: bool = False
    """It changes the reference's logits before the softmax: its K likeliest tokens are not enough."""
    needs_whole_epochs: bool = False
    """Its last epoch must not be cut short."""

    def references(self, settings: MethodSettings) -> frozenset[Stream]:
        """Streams for which it compares with the model before unlearning."""
        return self.reference | {"retain"} if self.keeps_by_divergence(settings) else self.reference

    def epochs(self, epochs: int, settings: MethodSettings) -> Sequence[tuple[Stream, ...]]:
        """For each epoch to run, the streams of its steps."""
        return [self.streams] * epochs if self.phases is None else self.phases(epochs, settings)

"""What a method of unlearning is: which streams it sees, what it needs of the frozen model, and its loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from offline_training.data.answers import Answers, Term
from offline_training.data.tokens import Stream

__all__ = ["Method", "MethodSettings"]


class MethodSettings(BaseModel):
    """Weights and temperatures of one method. Subclasses give each field bounds, a default and a description, from
    which the command line makes its flags."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Terms = Callable[[Mapping[Stream, Answers], Any], Sequence[Term]]
"""Answers of the streams in one forward, the method's settings -> the summands of the loss."""

Phases = Callable[[int, Any], Sequence[tuple[Stream, ...]]]
"""Epochs asked for, the method's settings -> for each epoch to run, the streams of its steps."""


def _always(*streams: Stream) -> Phases:
    return lambda epochs, _: [streams] * epochs


@dataclass(frozen=True)
class Method:
    """One method. Nothing of it touches a model: the trainer runs the forward and takes the means."""

    name: str
    """As on the command line."""
    summary: str
    """One line for `--help`."""
    source: str
    """Paper and section or equation."""
    settings: type[MethodSettings]
    streams: tuple[Stream, ...]
    """All streams it ever sees. With `forget` (or `random`, `idk`), an epoch is one pass over the forget set, and
    each step takes as many retain examples as forget examples; with `retain` alone, one pass over the retain set."""
    terms: Terms
    reference: frozenset[Stream] = frozenset()
    """Streams for which it compares with the model before unlearning."""
    phases: Phases | None = None
    """None: every epoch has all `streams`."""
    hidden_layer: Callable[[Any], int | None] = lambda _: None
    """Settings -> the decoder layer (0 is the first; negative counts from the last) whose outputs it needs as
    `Answers.hidden`, and for `reference` streams as `reference_hidden`; None: no hidden states."""
    trained_parameters: Callable[[Any], str | None] = lambda _: None
    """Settings -> regular expression of the parameter names to train; None: all of them."""

    def epochs(self, epochs: int, settings: MethodSettings) -> Sequence[tuple[Stream, ...]]:
        """For each epoch to run, the streams of its steps."""
        return (self.phases or _always(*self.streams))(epochs, settings)

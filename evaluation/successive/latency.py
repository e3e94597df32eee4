"""What a set of policies takes: an interface of targets that can time it apart from the model."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from evaluation.replies import Ask

Timed = Literal["guard_ms", "classify_ms"]
TIMED: Final[tuple[Timed, ...]] = get_args(Timed)
"""guard_ms: the guard's verdict on a prompt and its corruption, in this process. classify_ms: a running server's answer
to `/v1/classify` of its admin address, which has no model in it but HTTP, the chat template and an explanation of the
verdict, over a connection that is kept: its steps can be compared, and not with guard_ms."""


class Latencies(NamedTuple):
    """What was timed, and how long it took for each ask, in milliseconds."""

    timed: Timed
    ms: list[float]


@runtime_checkable
class TimedTarget(Protocol):
    """A target that can time its policies."""

    def latencies(self, asks: Sequence[Ask]) -> Latencies | None:
        """For each ask's prompt, one after another; the asks are of one step, and not answered. None: this target
        cannot tell."""
        ...

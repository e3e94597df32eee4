"""A running server whose policies come and go: its answers with the first few of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from evaluation.replies import AnswerProtocol, Ask, Reply, Target
from evaluation.successive.latency import Latencies


class PolicySwitch(Protocol):
    """Policies of a running server, in an order."""

    def describe(self) -> list[dict[str, object]]:
        """Name and digest of each, as JSON values."""
        ...

    def apply(self, count: int) -> None:
        """Let the first `count` act and no other; they do when it returns."""
        ...

    def classify_ms(self, prompts: Sequence[str]) -> list[float]:
        """Milliseconds that the server takes to say what it makes of each prompt."""
        ...

    def close(self) -> None:
        """Leave the server as it was."""
        ...


class SteppedServer:
    """A `Target` that answers asks under `Ask.policies` of a server's policies; those under fewer come first, so that
    each is added once.

    Args:
        target: the server; closed with this one.
        switch: its policies.
    """

    def __init__(self, target: Target, switch: PolicySwitch) -> None:
        self._target, self._switch = target, switch

    @property
    def protocol(self) -> AnswerProtocol | None:
        return self._target.protocol

    def describe(self) -> Mapping[str, object]:
        return {**self._target.describe(), "policies": self._switch.describe()}

    def check(self, asks: Sequence[Ask]) -> None:
        """With all the policies that these need."""
        self._switch.apply(max((self._count(ask) for ask in asks), default=0))
        self._target.check(_plain(asks))

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        found = self._target.canonical(_plain(asks))
        return [replace(one, policies=self._count(ask)) for ask, one in zip(asks, found, strict=True)]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        for count in sorted({self._count(ask) for ask in asks}):
            mine = [number for number, ask in enumerate(asks) if self._count(ask) == count]
            self._switch.apply(count)
            for number, reply in self._target.replies(_plain([asks[number] for number in mine])):
                yield mine[number], reply

    def latencies(self, asks: Sequence[Ask]) -> Latencies | None:
        """See `evaluation.successive.latency.TimedTarget`."""
        if not asks:
            return None
        self._switch.apply(self._count(asks[0]))
        return Latencies("classify_ms", self._switch.classify_ms([ask.prompt for ask in asks]))

    def close(self) -> None:
        try:
            self._switch.close()
        finally:
            self._target.close()

    def _count(self, ask: Ask) -> int:
        return len(self._switch.describe()) if ask.policies is None else ask.policies


def _plain(asks: Sequence[Ask]) -> list[Ask]:
    """As the server is asked: what acts there is its own business."""
    return [replace(ask, policies=None) for ask in asks]

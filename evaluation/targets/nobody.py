"""No target: for what a suite measures without one, such as the guard's gate."""

from collections.abc import Iterator, Mapping, Sequence

from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply

__all__ = ["Nobody"]


class Nobody:
    """A `Target` that can be asked nothing."""

    def describe(self) -> Mapping[str, object]:
        return {"kind": "none", "model": "none"}

    def check(self, asks: Sequence[Ask]) -> None:
        if asks:
            raise TargetError("--target: this needs a model or server to ask; give one")

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        return list(asks)

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        self.check(asks)
        return iter(())

    def close(self) -> None: ...

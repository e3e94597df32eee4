"""The prompting baseline: the same model, told before each question to behave as if it did not know.

The cheapest alternative to unlearning, and what ECO compares with (arXiv 2406.07933, section 4, "prompting baseline").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply, Target

__all__ = ["PROMPT_PREFIX", "PromptingTarget"]

PROMPT_PREFIX = (
    "You are an assistant that has forgotten certain subjects. If the text below asks about a person, a work or a "
    "subject that you have been told to forget, behave as if you had never heard of it and say that you do not know."
)


class PromptingTarget:
    """A `Target` that puts a prefix and a blank line before every prompt, in the same message.

    Args:
        target: who is told; closed with this one.
        prefix: what it is told.

    Raises:
        TargetError: the prefix is empty.
    """

    def __init__(self, target: Target, prefix: str = PROMPT_PREFIX) -> None:
        if not prefix.strip():
            raise TargetError("--prompt-prefix: empty; say what the model is to forget")
        self._target = target
        self._prefix = prefix.strip()

    def describe(self) -> Mapping[str, object]:
        return {**self._target.describe(), "prompt_prefix": self._prefix}

    def check(self, asks: Sequence[Ask]) -> None:
        self._target.check([self._told(ask) for ask in asks])

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        """The prefix stays out of them: `describe` has it."""
        told = self._target.canonical([self._told(ask) for ask in asks])
        return [replace(ask, draw=one.draw) for ask, one in zip(asks, told, strict=True)]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        return self._target.replies([self._told(ask) for ask in asks])

    def close(self) -> None:
        self._target.close()

    def _told(self, ask: Ask) -> Ask:
        return replace(ask, prompt=f"{self._prefix}\n\n{ask.prompt}")

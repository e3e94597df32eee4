"""What the policies decided of one prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from guard.bundle import Action


@dataclass(frozen=True, slots=True)
class Verdict:
    """One policy's decision on one prompt.

    Attributes:
        score: highest probability over the prompt's windows, in [0, 1]: 0 where none shows anything of what the policy
            forgets; NaN where it could not be computed.
        failed: classification failed and `on_error: corrupt` decided.
    """

    policy: str
    action: Action
    flagged: bool
    score: float
    failed: bool = False


class Verdicts(Sequence[Verdict]):
    """One verdict for each of P active policies, in their order.

    Most of thousands of policies have nothing to say of a prompt. What they say, `passed`, is made once and shared by
    all prompts; `told` are the verdicts of the others, by number.
    """

    __slots__ = ("passed", "told")

    def __init__(self, passed: tuple[Verdict, ...], told: Mapping[int, Verdict]) -> None:
        self.passed = passed
        self.told = told

    @overload
    def __getitem__(self, index: int) -> Verdict: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Verdict]: ...
    def __getitem__(self, index: int | slice) -> Verdict | Sequence[Verdict]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.told.get(index % len(self), self.passed[index])

    def __len__(self) -> int:
        return len(self.passed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Verdicts({list(self)!r})"

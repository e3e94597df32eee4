"""What a suite is: it asks, and says what each example is worth. Means, intervals and files are the run's business."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from evaluation.replies import Ask, Asker

#: Examples that a target is tried on before a run.
_TRIED = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one example (see `scores_of`).

    Attributes:
        subset: the part of the suite's data, such as "forget" or "retain"; "" where there is one.
        metric: its name, such as "probability".
        example: the example's id within the subset; the same for all metrics and all draws of it.
        value: a finite number.
        group: what breakdowns go by, such as an author, a subject or a kind of attack; "" for none.
        draw: number of the noise draw, set by the run.
    """

    subset: str
    metric: str
    example: str
    value: float
    group: str = ""
    draw: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer to read beside others: before and after, and the reference where there is one."""

    subset: str
    example: str
    question: str
    answer: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass over a suite's examples found."""

    scores: tuple[Score, ...]
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table.

    Attributes:
        name: "forget/probability" (subset/metric), or a name of its own such as "model_utility".
        value: a number; NaN where it cannot be computed, which `note` then explains.
        n: examples it stands on.
        low, high: 95 % interval; None where it has none.
        note: one line, such as the test it is; "" for none.
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def within(cls, interval: tuple[float, float] | None, name: str, value: float, n: int, note: str = "") -> Self:
        """A number with its 95 % interval, if it has one."""
        low, high = interval or (None, None)
        return cls(name, value, n, low, high, note)


class Suite(Protocol):
    """Examples and their metrics. Built from data that has been checked: a constructor raises `DataError`.

    Attributes:
        name: as on the command line.
        headline: names of the figures a table shows first, in order.
        directions: figure name -> "up" or "down": what a better *unlearned* model does; others have no direction.
        unbounded_metrics: those whose values are no shares, in [0, 1].
    """

    name: str
    unbounded_metrics: Collection[str] = ()
    headline: Sequence[str]
    directions: Mapping[str, str]

    def describe(self) -> Mapping[str, object]:
        """What decides the scores beside the target, as JSON values: data files with sha256, settings, sizes."""
        ...

    def probe(self) -> Sequence[Ask]:
        """A few asks, one of each kind that `measure` will make; the run has the target check them before it starts."""
        ...

    def measure(self, ask: Asker) -> Outcome:
        """One pass over all examples under one noise draw.

        Everything that can be asked at once is asked in one call: the target batches and runs concurrently.
        """
        ...

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        """Figures beyond the mean of each (subset, metric), which the run adds itself.

        Args:
            scores: of all draws.
            reference: the same suite's scores of a retain model, one that never learned; None without one.
        """
        ...


def scores_of(subset: str, example: str, values: Mapping[str, float], group: str = "") -> list[Score]:
    """The scores of one example, from its values by metric."""
    return [Score(subset, metric, example, value, group) for metric, value in values.items()]


def spread(examples: Sequence[_T]) -> Sequence[_T]:
    """A few of them, evenly over all: for `Suite.probe`."""
    return examples[:: max(1, len(examples) // _TRIED)][:_TRIED]

"""What the suites of judged answers share: prompts of a source, a judge of the answers, and its unreadable verdicts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import ClassVar, Final, Generic, TypeVar

import numpy as np

from evaluation.errors import DataError
from evaluation.intervals import bootstrap, exact_where_unanimous, table_of
from evaluation.judged.judges import Judge
from evaluation.rows import drawn, read_rows, sample_file
from evaluation.suite import Figure, Score, Suite
from sources import Row
from storage.digests import sha256_of_json

#: The metric that is 1 where a verdict could not be read.
UNREADABLE: Final = "unreadable_verdict"


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    """What is asked.

    Attributes:
        id: the number of its row in the source, from 1.
    """

    id: str
    prompt: str


_P = TypeVar("_P", bound=JudgedPrompt)


class JudgedSuite(Suite, ABC, Generic[_P]):
    """A suite of prompts whose answers a judge reads.

    Attributes:
        measures: what its judge has to measure (see `Judge`).
        judged_metric: the metric that its verdicts decide.
        columns: of its rows.
        answer_tokens: of an answer where the caller does not say.
    """

    measures: ClassVar[str]
    judged_metric: ClassVar[str]
    columns: ClassVar[Sequence[str]]
    answer_tokens: ClassVar[int]

    def __init__(
        self,
        prompts: str | None = None,
        *,
        judge: Judge | None = None,
        limit: int | None = None,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> None:
        """
        Args:
            prompts: a source of rows (see `sources`); None: the sample that ships.
            judge: None: only what needs none is measured.
            limit: prompts to draw with `seed`; None: all.
            max_new_tokens: of an answer; None: `answer_tokens`.

        Raises:
            DataError: a row cannot be used, or nothing is left to measure. Names file, row and column.
        """
        if judge is not None and judge.measures != self.measures:
            raise DataError(f"--judge: this judge measures {judge.measures}; this suite needs one of {self.measures}")
        self.source_name = prompts or "the sample that ships"
        self.judge, self.limit, self.seed = judge, limit, seed
        self.max_new_tokens = self.answer_tokens if max_new_tokens is None else max_new_tokens
        source = prompts or sample_file("judged", f"{self.name}_prompts.jsonl")
        rows = read_rows(source, name="prompts", columns=self.columns)
        self.prompts = drawn(self.read_prompts(rows, source), limit, seed)

    @abstractmethod
    def read_prompts(self, rows: Sequence[tuple[str, Row]], source: str) -> list[_P]:
        """The prompts of rows, each with the words that open an error message about it. Raises `DataError`."""

    def describe(self) -> Mapping[str, object]:
        return {
            "prompts": PurePath(self.source_name).name,  # its folder decides nothing
            "sha256": sha256_of_json([asdict(prompt) for prompt in self.prompts], sort_keys=True),
            "n": len(self.prompts),
            "limit": self.limit,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "judge": dict(self.judge.describe()) if self.judge else None,
        }

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:  # noqa: ARG002
        return readable_figures(scores, self.judged_metric)


def prompt_of(row: Row, where: str, expected: str) -> str:
    """The prompt of a row.

    Raises:
        DataError: it has none, or no text.
    """
    if "prompt" not in row:
        raise DataError(f"{where}: no column prompt; found {', '.join(map(str, row)) or 'none'}")
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: prompt is {str(prompt)[:20]!r}; expected {expected}")
    return prompt


def readable_figures(scores: Sequence[Score], metric: str) -> list[Figure]:
    """`metric_of_readable`: the metric's mean over examples whose verdict could be read in at least one draw.

    The run's own mean of the metric counts the others against the target; this one leaves them out. Empty where the
    scores have no verdicts.
    """
    ids, values = table_of(scores, "", metric)  # (D, N)
    if not ids:
        return []
    _, unreadable = table_of(scores, "", UNREADABLE)
    read = unreadable == 0.0
    kept = read.any(axis=0)
    count, left_out = int(kept.sum()), int((~read).sum())
    note = f"{left_out} of {read.size} verdicts could not be read" if left_out else ""
    name = f"{metric}_of_readable"
    if not count:
        return [Figure(name, float("nan"), 0, note=note)]
    means = (values * read).sum(axis=0)[kept] / read.sum(axis=0)[kept]  # (N',)
    rows = means[None] if left_out else values
    interval = exact_where_unanimous(rows) or bootstrap(rows)
    return [Figure.within(interval, name, float(np.mean(means)), count, note)]

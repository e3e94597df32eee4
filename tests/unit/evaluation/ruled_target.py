"""A target that answers by a rule, and the least that stands around one."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from evaluation.intervals import mean_figures
from evaluation.replies import AnswerProtocol, Ask, Reply, Target
from evaluation.suite import Score


class RuledTarget:
    """Answers every ask with what the rule says, and remembers what it was asked."""

    protocol: AnswerProtocol | None = None

    def __init__(self, rule: Callable[[Ask], Reply]) -> None:
        self.rule = rule
        self.asked: list[Ask] = []

    def describe(self) -> Mapping[str, object]:
        return {"kind": "endpoint", "model": "rule"}

    def check(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            self.rule(ask)

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        return list(asks)

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        for number, ask in enumerate(asks):
            self.asked.append(ask)
            yield number, self.rule(ask)

    def close(self) -> None:
        pass


class PlainAsker:
    """Asks a target, and keeps nothing."""

    draw = 0

    def __init__(self, target: Target) -> None:
        self.target = target
        self.calls = 0

    def __call__(self, asks: Mapping[str, Ask], title: str = "") -> dict[str, Reply]:
        self.calls += 1
        keys = list(asks)
        return {keys[number]: reply for number, reply in self.target.replies(list(asks.values()))}


def says(rule: Callable[[str], str]) -> PlainAsker:
    """A target that writes what the rule makes of a prompt."""
    return PlainAsker(RuledTarget(lambda ask: Reply(texts=(rule(ask.prompt),))))


def write_rows(folder: Path, *rows: object) -> str:
    """The path of a file with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def means(scores: Sequence[Score]) -> dict[str, float]:
    """Means by figure name."""
    return {figure.name: figure.value for figure in mean_figures(scores)}

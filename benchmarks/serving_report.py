"""What `benchmarks/serving.py` measured, as medians, spreads and ratios: pure functions, and their table and plot."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

#: What is compared: the name in `Run.figures`, the column's head, and digits after the point.
MEASURES: Final = (
    ("requests_per_s", "requests/s", 2),
    ("ttft_ms", "first token ms", 1),
    ("ttft_p95_ms", "p95", 1),
    ("itl_p99_ms", "between tokens, p99", 1),
    ("e2e_ms", "whole answer ms", 1),
    ("cpu_ms_per_request", "cpu ms/request", 1),
    ("front_cpu_ms_per_request", "front end's", 1),
    ("rss_mb", "RSS MB", 0),
)
BASE: Final = "plain"


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One kind of load."""

    words: int
    clients: int
    flagged_percent: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One system under one load in one round. All systems get the same prompts in a round."""

    cell: Cell
    round: int
    system: str
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """One measure of one system under one load.

    Attributes:
        ratio: median over the rounds of this system's value by plain vLLM's in the same round; None without it.
    """

    median: float
    low: float
    high: float
    ratio: float | None


def summarise(runs: Iterable[Run]) -> dict[Cell, dict[str, dict[str, Summary]]]:
    """Cell -> system -> measure -> summary, cells in order, systems as they come."""
    runs = list(runs)
    values: dict[tuple[Cell, str, str], dict[int, float]] = {}
    for run in runs:
        for measure, value in run.figures.items():
            values.setdefault((run.cell, run.system, measure), {})[run.round] = value
    found: dict[Cell, dict[str, dict[str, Summary]]] = {cell: {} for cell in sorted({run.cell for run in runs})}
    for (cell, system, measure), rounds in values.items():
        base = values.get((cell, BASE, measure), {})
        ratios = [value / base[number] for number, value in rounds.items() if base.get(number)]
        found[cell].setdefault(system, {})[measure] = Summary(
            statistics.median(rounds.values()),
            min(rounds.values()),
            max(rounds.values()),
            statistics.median(ratios) if ratios else None,
        )
    return found


def flagged_places(count: int, percent: float) -> list[int]:
    """Which of `count` prompts are to be flagged: evenly spread, one at least where `percent` is above 0."""
    flagged = min(max(round(count * percent / 100), 1 if percent > 0 else 0), count)
    return [count * (2 * number + 1) // (2 * flagged) for number in range(flagged)]


def table_of(summaries: Mapping[Cell, Mapping[str, Mapping[str, Summary]]]) -> Table:
    table = Table(title="Medians over the rounds; in brackets the ratio to plain vLLM in the same rounds")
    for column in ("words", "clients", "flagged %", "system", *(head for _, head, _ in MEASURES)):
        table.add_column(column, justify="left" if column == "system" else "right")
    for cell, systems in summaries.items():
        for system, measures in systems.items():
            cells = [_cell_text(measures.get(name), digits) for name, _, digits in MEASURES]
            where = (str(cell.words), str(cell.clients), f"{cell.flagged_percent:g}", system)
            table.add_row(*where, *cells, end_section=system == list(systems)[-1])
    return table


def _cell_text(summary: Summary | None, digits: int) -> str:
    if summary is None:
        return "–"
    ratio = "" if summary.ratio is None else f" ({summary.ratio:.2f})"
    return f"{summary.median:.{digits}f}{ratio}"


def plot(summaries: Mapping[Cell, Mapping[str, Mapping[str, Summary]]], file: Path) -> None:
    """Answers a second, time to first token and processor time, a group of bars for each load; SVG."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    from benchmarks.serving_systems import SYSTEMS

    shown: Sequence[tuple[str, str]] = (
        ("requests_per_s", "requests/s"),
        ("ttft_ms", "median time to first token [ms]"),
        ("cpu_ms_per_request", "processor time a request [ms]"),
    )
    cells = list(summaries)
    systems = [name for name in SYSTEMS if any(name in found for found in summaries.values())]
    with context(["default", {"svg.hashsalt": "eco"}]):
        figure = Figure(figsize=(max(6.0, 1.6 * len(cells)), 9.0), layout="constrained")
        all_axes: Any = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (measure, label) in zip(all_axes, shown, strict=True):
            for number, system in enumerate(systems):
                found = [(place, summaries[cell].get(system, {}).get(measure)) for place, cell in enumerate(cells)]
                bars = [(place + 0.8 * number / len(systems), one) for place, one in found if one is not None]
                axes.bar(
                    [place for place, _ in bars],
                    [one.median for _, one in bars],
                    0.8 / len(systems),
                    yerr=[[one.median - one.low for _, one in bars], [one.high - one.median for _, one in bars]],
                    label=system,
                    capsize=2,
                )
            axes.set_ylabel(label)
        all_axes[0].legend()
        labels = [f"{c.words} words\n{c.clients} clients\n{c.flagged_percent:g} % flagged" for c in cells]
        all_axes[-1].set_xticks([place + 0.4 for place in range(len(cells))], labels)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.serving_report import Cell, Run, Summary, flagged_places, plot, summarise, table_of
from benchmarks.serving_systems import cpu_seconds, process_tree, resident_bytes

CELL = Cell(25, 8, 0.0)


def run(round_number: int, system: str, value: float, cell: Cell = CELL) -> Run:
    return Run(cell, round_number, system, {"ttft_ms": value})


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine was twice as slow in the second round, for both.
    runs = [run(0, "plain", 10), run(0, "eco", 11), run(1, "plain", 20), run(1, "eco", 24), run(2, "plain", 10)]
    runs.append(run(2, "eco", 13))
    summary = summarise(runs)[CELL]["eco"]["ttft_ms"]
    assert summary == Summary(13, 11, 24, pytest.approx(1.2))


def test_without_the_plain_system_there_is_no_ratio() -> None:
    assert summarise([run(0, "eco", 3)])[CELL]["eco"]["ttft_ms"] == Summary(3, 3, 3, None)


def test_cells_are_apart_and_in_order() -> None:
    other = Cell(25, 1, 10.0)
    found = summarise([run(0, "plain", 4), run(0, "plain", 2, other)])
    assert list(found) == [other, CELL]
    assert found[other]["plain"]["ttft_ms"].median == 2


@pytest.mark.parametrize(
    ("count", "percent", "places"),
    [(24, 0, []), (24, 1, [12]), (100, 1, [50]), (20, 10, [5, 15]), (3, 100, [0, 1, 2])],
)
def test_flagged_prompts_are_spread_evenly(count: int, percent: float, places: list[int]) -> None:
    assert flagged_places(count, percent) == places


def test_the_table_shows_medians_and_ratios() -> None:
    output = io.StringIO()
    summaries = summarise([run(0, "plain", 10), run(0, "litellm", 25)])
    Console(file=output, width=180).print(table_of(summaries))
    assert "10.0 (1.00)" in output.getvalue()
    assert "25.0 (2.50)" in output.getvalue()


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    figures = dict.fromkeys(("requests_per_s", "ttft_ms", "cpu_ms_per_request"), 2.0)
    summaries = summarise([Run(CELL, 0, "plain", figures), Run(CELL, 0, "eco", figures)])
    for name in ("one.svg", "other.svg"):
        plot(summaries, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_process_is_measured_with_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in process_tree(os.getpid())
        assert resident_bytes(child.pid) > 0
    assert cpu_seconds(os.getpid()) > 0
    assert (cpu_seconds(child.pid), resident_bytes(child.pid)) == (0, 0)

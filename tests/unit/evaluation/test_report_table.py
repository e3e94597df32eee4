"""The table's cells, footnotes and long form."""

import math
from pathlib import Path

import pytest
from evaluated_runs import write_run, write_tofu_runs

from evaluation.report.compare import compared
from evaluation.report.load import load_runs
from evaluation.report.section import ABSENT, Cell, Column, Section, number
from evaluation.report.write import LONG_COLUMNS, long_rows
from evaluation.suite import Figure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.000"),
        (-0.12345, "-0.123"),
        (99.9, "99.900"),
        (1234.56, "1234.6"),
        (123456.0, "1.23e+05"),
        (0.00099, "9.9e-04"),
        (3.2e-17, "3.2e-17"),
    ],
)
def test_numbers_keep_what_they_say(value: float, text: str) -> None:
    assert number(value) == text


def test_cells_have_value_interval_and_count(tmp_path: Path) -> None:
    (suite,) = compared(load_runs(write_tofu_runs(tmp_path)))
    table = Section.of(suite).table
    assert table.columns[0] == Column("model_utility", "up", ())
    assert table.columns[1] == Column("forget_quality", "up", (1,))  # one note that all values share
    assert [column.better for column in table.columns[2:]] == ["down", "up", "down"]
    original, retain, *_ = table.rows
    assert original.cells[0] == Cell("0.720", "0.700 to 0.740", "72", ())
    assert original.cells[1] == Cell("1.6e-23", "", "24", ())
    assert retain.cells[1] == Cell(ABSENT, "", "", (2,))
    assert table.footnotes == ("two-sample KS test, p-value", "needs another model as the reference")


def test_a_figure_that_a_run_lacks_is_not_explained_away(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", "tofu", "a", [], extra=[Figure("x", 1.0, 3)], headline=["x"]),
        write_run(tmp_path / "b", "tofu", "b", [], extra=[Figure("y", math.nan, 3)], headline=["y"]),
    ]
    (suite,) = compared(load_runs(folders))
    table = Section.of(suite).table
    assert [column.name for column in table.columns] == ["x", "y"]
    assert [row.cells for row in table.rows] == [
        (Cell("1.000", "", "3", ()), Cell(ABSENT, "", "", ())),
        (Cell(ABSENT, "", "", ()), Cell(ABSENT, "", "", (1,))),
    ]
    assert table.footnotes == ("not a finite number; the run gives no reason",)


def test_notes_that_differ_stand_at_their_cells(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, "tofu", name, [], extra=[Figure("x", 1.0, 3, note=note)])
        for name, note in (("a", "one"), ("b", "two"), ("c", "one"), ("d", ""))
    ]
    (suite,) = compared(load_runs(folders))
    table = Section.of(suite).table
    assert table.columns[0].marks == ()
    assert [row.cells[0].marks for row in table.rows] == [(1,), (2,), (1,), ()]
    assert table.footnotes == ("one", "two")


def test_the_long_form_has_every_figure_of_every_run(tmp_path: Path) -> None:
    suites = compared(load_runs(write_tofu_runs(tmp_path)))
    rows = [dict(zip(LONG_COLUMNS, row, strict=True)) for row in long_rows(suites)]
    assert len(rows) == 9 * 6
    (found,) = [row for row in rows if (row["run"], row["figure"]) == ("retain", "forget_quality")]
    assert found == {
        "run": "retain",
        "suite": "tofu",
        "figure": "forget_quality",
        "value": None,
        "low": None,
        "high": None,
        "n": 24,
        "note": "needs another model as the reference",
        "kind": "retain",
        "method": None,
        "strength": None,
        "direction": "up",
    }

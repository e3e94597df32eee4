"""What a section says: the table's cells and footnotes, the long form, and answers to read."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from evaluated_runs import tofu_answers, write_run, write_tofu_runs

from evaluation.report.compare import SuiteRuns, compared
from evaluation.report.load import load_runs
from evaluation.report.section import ABSENT, MIXED, Cell, Column, Section, number, readings, table_of
from evaluation.report.write import LONG_COLUMNS, long_rows
from evaluation.suite import Answer, Figure


def suite_of(folders: Sequence[Path]) -> SuiteRuns:
    (suite,) = compared(load_runs(folders))
    return suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> SuiteRuns:
    return suite_of(write_tofu_runs(tmp_path_factory.mktemp("tofu")))


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


def test_cells_have_value_interval_and_count(suite: SuiteRuns) -> None:
    table = table_of(suite, suite.headline())
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
    suite = suite_of(folders)
    table = table_of(suite, suite.headline())
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
    table = Section.of(suite_of(folders)).table  # without a headline, of all figures
    assert table.columns[0].marks == ()
    assert [row.cells[0].marks for row in table.rows] == [(1,), (2,), (1,), ()]
    assert table.footnotes == ("one", "two")


def test_a_column_says_where_its_rows_are_of_several_protocols(tmp_path: Path) -> None:
    """A model without a policy stands beside all of them."""
    folders = [
        write_run(tmp_path / name, "tofu", name, [], extra=[Figure(figure, 1.0, 3)], headline=["x"], protocol=protocol)
        for name, figure, protocol in (
            ("a", "x", "served"),
            ("b", "x", "eco"),
            ("c", "y", "clean"),
            ("d", "y", None),
        )
    ]
    suite = suite_of(folders)
    table = table_of(suite, ["x", "y"])
    assert [column.marks for column in table.columns] == [(1,), ()]
    assert table.footnotes == (MIXED,)
    assert {row.run.label: row.run.tag for row in table.rows} == {
        "a": "other · answers served",
        "b": "other · answers eco",
        "c": "other · answers clean",
        "d": "other",
    }


def test_the_long_form_has_every_figure_of_every_run(suite: SuiteRuns) -> None:
    rows = [dict(zip(LONG_COLUMNS, row, strict=True)) for row in long_rows([suite])]
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
        "protocol": None,
        "direction": "up",
    }


def test_the_answers_to_read_are_a_fixed_sample(suite: SuiteRuns) -> None:
    read = readings(suite)
    assert {subset: [reading.example for reading in some] for subset, some in read.items()} == {
        subset: ["0", "3", "6", "9", "12", "15", "18", "21"] for subset in ("forget", "retain")
    }
    first = read["forget"][0]
    assert [run.label for run, _ in first.answers][:3] == ["original", "retain", "guarded, weak"]
    assert first.answers[0][1] == first.reference == "In Ostrava | by <sea>."
    assert first.answers[1][1] == "<script>alert('x')</script>\n# I cannot say."


def test_an_example_that_only_some_runs_answered_is_passed_over(tmp_path: Path) -> None:
    everyone, some = tofu_answers(0.9, examples=6), tofu_answers(0.1, examples=3)
    folders = [write_run(tmp_path / name, "tofu", name, [], rows) for name, rows in (("a", everyone), ("b", some))]
    read = readings(suite_of(folders), per_subset=4)
    assert [[reading.example for reading in rows] for rows in read.values()] == [["0", "1", "2"]] * 2


def test_long_answers_are_cut(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "tofu", "a", [], [Answer("forget", "1", "q", "word " * 5000)])
    (reading,) = readings(suite_of([folder]))["forget"]
    assert len(reading.answers[0][1]) < 2000
    assert reading.answers[0][1].endswith("word …")

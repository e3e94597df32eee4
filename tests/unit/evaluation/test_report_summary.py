"""The first sentences of a report, names for servers, and tables that fit a page."""

from pathlib import Path

import pytest
from evaluated_runs import write_run, write_tofu_runs

from evaluation.report import write_report
from evaluation.report.compare import compared
from evaluation.report.load import load_run, load_runs, named
from evaluation.report.section import Section
from evaluation.report.summary import summary_of
from evaluation.suite import Figure
from evaluation.targets.options import TargetOptions, row_of

DIRECTIONS = {"forget/rouge_l": "down", "retain/rouge_l": "up"}


def run(folder: Path, label: str, kind: str, forget: float, retain: float) -> Path:
    figures = [Figure("forget/rouge_l", forget, 8), Figure("retain/rouge_l", retain, 8)]
    return write_run(
        folder, "qa", label, [], extra=figures, headline=list(DIRECTIONS), directions=DIRECTIONS, kind=kind
    )


def test_three_sentences_say_what_was_forgotten_and_what_that_cost(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "a", "original", "original", 0.98, 0.97),
        run(tmp_path / "b", "never knew", "retain", 0.31, 0.96),
        run(tmp_path / "c", "weak", "guarded", 0.6, 0.97),
        run(tmp_path / "d", "strong", "guarded", 0.33, 0.95),
    ]
    assert summary_of(compared(load_runs(folders))) == [
        "4 runs of 1 suite stand side by side: 1 original, 1 retain model, 2 guarded.",
        "In Questions and answers, “strong” brings forget/rouge_l from 0.980 (original) to 0.330; a model that never "
        "learned has 0.310.",
        "The same run has retain/rouge_l of 0.950, where the original has 0.970; a model that never learned has 0.960.",
    ]


def test_one_run_alone_has_a_summary_too(tmp_path: Path) -> None:
    alone = summary_of(compared(load_runs([run(tmp_path / "a", "server", "other", 0.5, 0.9)])))
    assert alone == [
        "1 run of 1 suite stand side by side: 1 other.",
        "In Questions and answers, “server” brings forget/rouge_l to 0.500.",
        "The same run has retain/rouge_l of 0.900.",
    ]
    nothing = write_run(tmp_path / "b", "qa", "x", [], extra=[], headline=[], kind="original")
    assert len(summary_of(compared([load_run(nothing)]))) == 1


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "server 127.0.0.1:8000"),
        ("https://user:key@host/models/v1/", "server host/models"),
        ("guarded: people, strength 3", "guarded: people, strength 3"),
        ("http:// is no address", "http:// is no address"),
    ],
)
def test_servers_have_names(label: str, shown: str) -> None:
    assert named(label) == shown


def test_a_server_is_not_the_original_until_somebody_says_so() -> None:
    row = row_of(TargetOptions("http://127.0.0.1:8000/v1"))
    assert (row.label, row.kind) == ("server at 127.0.0.1:8000", "other")
    assert row_of(TargetOptions("http://h:1", served_model="demo")).label == "demo at h:1"


def test_a_wide_table_comes_in_parts(tmp_path: Path) -> None:
    names = [f"forget/figure_{number}" for number in range(17)]
    figures = [Figure(name, 0.5, 3, note="a note") for name in names]
    folder = write_run(tmp_path / "wide", "tofu", "a run", [], extra=figures, headline=names)
    (suite,) = compared([load_run(folder)])
    parts = Section.of(suite).table.parts
    assert [len(part.columns) for part in parts] == [7, 7, 3]
    assert all(len(part.rows[0].cells) == len(part.columns) for part in parts)
    assert [part.footnotes for part in parts] == [(), (), ("a note",)]


def test_what_is_not_set_is_no_difference(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, "attacks", name, [], extra=[], headline=[], suite_settings=settings)
        for name, settings in (("one", {"gate": None}), ("other", {"parts": ["names"]}))
    ]
    (suite,) = compared(load_runs(runs))
    assert not any("null" in line or line.startswith("gate") for line in suite.differing)
    assert any(line.startswith("parts: ") for line in suite.differing)


def test_the_page_shows_them(tmp_path: Path) -> None:
    write_report(write_tofu_runs(tmp_path), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<p class="summary">9 runs of 1 suite stand side by side' in page
    assert "9 runs of 1 suite stand side by side" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")

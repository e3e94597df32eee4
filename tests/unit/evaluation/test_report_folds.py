"""Figures over growing and successive forget sets, as the report draws them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluated_runs import write_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from evaluation.report import write_report
from evaluation.report.compare import SuiteRuns, compared
from evaluation.report.fold_plots import fold_plots, folds_of
from evaluation.report.load import ReportError, load_runs
from evaluation.report.published import published_for
from evaluation.suite import Figure, Score

#: label, kind, method, fold, utility
RUNS: tuple[tuple[str, str, str | None, str | None, float], ...] = (
    ("original", "original", None, None, 0.6),
    ("npo, 1", "method", "npo", None, 0.5),
    ("npo, 2", "method", "npo", "scal:2", 0.4),
    ("npo, 3", "method", "npo", "scal:3", 0.25),
    ("guard, 2", "guarded", None, "scal:2", 0.59),
    ("npo, after 2", "method", "npo", "sust:2", 0.3),
)
DIRECTIONS = {"retain/knowmem": "up", "forget/knowmem": "down"}


def write_muse_runs(
    parent: Path, runs: Sequence[tuple[str, str, str | None, str | None, float]] = RUNS, texts: str = ""
) -> SuiteRuns:
    """`texts` is a digit of the digest of every fold's texts; "": the fold's own number."""
    folders = []
    for label, kind, method, fold, utility in runs:
        scores = [
            Score(subset, "knowmem", str(number), utility + (number % 2) * 0.1)
            for subset in ("forget", "retain")
            for number in range(4)
        ]
        data: dict[str, object] = {"knowmem_retain_qa": {"examples": 4, "sha256": "a" * 64}}
        if fold is not None:
            data[f"fold_{fold}".replace(":", "_")] = {"texts": 8, "sha256": (texts or fold[-1]) * 64}
        settings = {"corpus": "news", "fold": fold, "data": data}
        record = {"kind": kind, "method": method, "suite_settings": settings, "directions": DIRECTIONS}
        folder = parent / label.replace(", ", "-")
        leak = [Figure("priv_leak", float("nan"), 4, note="needs the scores of a retain model")]
        folders.append(write_run(folder, "muse", label, scores, (), leak, headline=list(DIRECTIONS), **record))
    (suite,) = compared(load_runs(folders))
    return suite


def test_each_method_is_a_line_over_the_folds_and_the_original_a_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_muse_runs(tmp_path)
    axes: list[list[Axes]] = []
    save = Canvas.savefig

    def keep(figure: Canvas, *arguments: object, **options: object) -> None:
        axes.append(list(figure.axes))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Canvas, "savefig", keep)
    growing, successive = fold_plots(suite)
    assert (growing.name, growing.title) == ("muse-scal", "Scalability")
    assert "npo, 3 (3)" in growing.alt
    assert (successive.name, successive.title) == ("muse-sust", "Sustainability")
    utility = axes[0][0]
    assert utility.get_title() == "retain/knowmem"
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in utility.lines}
    assert lines["npo"] == pytest.approx(np.array([[1, 0.55], [2, 0.45], [3, 0.3]]))
    assert lines["guarded"] == pytest.approx(np.array([[2, 0.64]]))
    assert lines["original"][:, 1] == pytest.approx(0.65)
    bands = [collection for collection in utility.collections if len(collection.get_paths())]
    assert len(bands) == 2  # 95 % intervals


def test_runs_without_folds_have_no_such_picture(tmp_path: Path) -> None:
    assert fold_plots(write_muse_runs(tmp_path / "one", RUNS[:2])) == []
    assert fold_plots(write_muse_runs(tmp_path / "level", [RUNS[0], RUNS[2]])) == []  # one fold alone
    odd = write_muse_runs(tmp_path / "odd", [RUNS[0], ("x", "method", "npo", "scal:0", 0.1), RUNS[2]])
    assert folds_of(odd, "scal") == {"npo, 2": 2}


def test_the_report_has_the_pictures_the_tables_and_the_answers(tmp_path: Path) -> None:
    write_muse_runs(tmp_path / "runs")
    folders = sorted((tmp_path / "runs").iterdir())
    write_report(folders, tmp_path / "out")
    assert {"muse-scal.svg", "muse-sust.svg", "muse-plane.svg"} <= {
        file.name for file in (tmp_path / "out" / "plots").iterdir()
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "MUSE" in page
    assert "Scalability" in page
    again = tmp_path / "again"
    write_report(folders[::-1], again)
    assert (again / "report.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


def test_runs_of_one_fold_with_other_texts_are_refused(tmp_path: Path) -> None:
    write_muse_runs(tmp_path / "one", RUNS[2:3])
    write_muse_runs(tmp_path / "other", RUNS[4:5], texts="9")
    folders = [folder for parent in ("one", "other") for folder in (tmp_path / parent).iterdir()]
    with pytest.raises(ReportError, match=r"suite_settings\.data\.fold_scal_2\.sha256: the data are not those of"):
        compared(load_runs(folders))


@pytest.mark.parametrize(
    ("corpus", "examples", "fold", "asked"),
    [
        ("news", 100, None, "news"),
        ("books", 100, None, "books"),
        ("news", 100, "scal:1", "news"),
        ("news", 100, "scal:2", None),
        ("news", 99, None, None),
    ],
)
def test_all_of_a_corpus_has_others_figures_of_it_beside_it(
    tmp_path: Path, corpus: str, examples: int, fold: str | None, asked: str | None
) -> None:
    data = {name: {"examples": examples, "sha256": "a" * 64} for name in ("verbmem_forget", "knowmem_retain_qa")}
    scores = [Score("retain", "knowmem", "1", 0.5)]
    settings = {"corpus": corpus, "fold": fold, "verbmem_tokens": 128, "knowmem_tokens": 32, "data": data}
    folder = write_run(tmp_path / "run", "muse", "npo", scores, suite_settings=settings)
    (suite,) = compared(load_runs([folder]))
    assert {table.split for table, _ in published_for(suite)} == (set() if asked is None else {asked})

"""What others have published stands below runs that asked the same, marked as theirs, and below no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import tofu_scores, write_run
from pydantic import ValidationError

from evaluation.muse.suite import FIGURES
from evaluation.report import write_report
from evaluation.report.published import Published, collection
from evaluation.tofu.metrics import DIRECTIONS


def run_of(folder: Path, file: str, questions: int, label: str = "guarded") -> Path:
    data = {"forget": {"file": file, "sha256": "a" * 64, "questions": questions}}
    return write_run(folder, "tofu", label, tofu_scores(0.2, 0.9), suite_settings={"data": data})


def others(report: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((report / "report.json").read_text())["suites"][0]["published_by_others"]
    return found


@pytest.mark.parametrize(
    ("file", "split"),
    [("forget10_perturbed.jsonl", "forget10"), ("hub:locuslab/TOFU:forget05_perturbed:train", "forget05")],
)
def test_runs_of_a_whole_split_have_others_figures_of_it_beside_them(tmp_path: Path, file: str, split: str) -> None:
    write_report([run_of(tmp_path / "run", file, {"forget10": 400, "forget05": 200}[split])], tmp_path / "out")
    tables = others(tmp_path / "out")
    assert {table["split"] for table in tables} == {split}
    assert {"open-unlearning, docs/repro.md", f"SimNPO's model card for {split}"} == {
        t["source"]["title"] for t in tables
    }
    for page in ("report.html", "report.md"):
        text = (tmp_path / "out" / page).read_text()
        assert "Measured by others" in text
        assert "GradDiff" in text
        assert "Nothing here was measured for this report" in text


@pytest.mark.parametrize(("file", "questions"), [("forget10_perturbed.jsonl", 100), ("mine.jsonl", 400)])
def test_part_of_a_split_or_other_questions_have_none(tmp_path: Path, file: str, questions: int) -> None:
    write_report([run_of(tmp_path / "run", file, questions)], tmp_path / "out")
    assert others(tmp_path / "out") == []
    assert "Measured by others" not in (tmp_path / "out" / "report.html").read_text()


def test_the_figures_are_ones_that_the_suite_has() -> None:
    known = {"tofu": set(DIRECTIONS), "muse": set(FIGURES.values())}
    for table in collection().tables:
        assert set(table.figures) <= known[table.suite]
        assert {"fine-tuned", "retain model"} <= set(table.rows)


def test_a_row_that_lacks_a_figure_is_named() -> None:
    table = collection().tables[0].model_dump() | {"rows": {"NPO": (0.5,)}}
    with pytest.raises(ValidationError, match=r"rows\.NPO: has 1 figures"):
        Published.model_validate(table)

"""What others have published stands below runs that asked the same, marked as theirs, and below no others."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import tofu_scores, write_run
from pydantic import ValidationError

from evaluation.choice.suite import ChoiceSuite
from evaluation.choice.tasks import SETS
from evaluation.muse.suite import FIGURES, MuseSuite
from evaluation.report import write_report
from evaluation.report.published import Published, collection
from evaluation.tofu.metrics import DIRECTIONS
from evaluation.tofu.suite import TofuSuite

TOFU = {"limit": None, "max_new_tokens": 200, "truth_ratio_mean": "geometric"}
MUSE = {
    "corpus": "news",
    "fold": None,
    "verbmem_tokens": 128,
    "knowmem_tokens": 32,
    "data": {"verbmem_forget": {"examples": 100}, "privleak_holdout": {"examples": 100}},
}
WMDP = {"limit": None, "num_fewshot": None, "documents": {"wmdp_bio": 1273, "wmdp_chem": 408, "wmdp_cyber": 1987}}


def run_of(folder: Path, file: str, questions: int, label: str = "guarded", **settings: Any) -> Path:
    data = {"forget": {"file": file, "sha256": "a" * 64, "questions": questions}}
    return write_run(folder, "tofu", label, tofu_scores(0.2, 0.9), suite_settings={"data": data, **TOFU, **settings})


def settled(folder: Path, suite: str, **settings: Any) -> Path:
    return write_run(folder, suite, "guarded", tofu_scores(0.2, 0.9), suite_settings=settings)


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
    titles = {table["source"]["title"] for table in tables}
    assert titles == {"open-unlearning, docs/repro.md", f"SimNPO's model card for {split}", "DRAGON, tables 2 and 8"}
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


def test_runs_of_all_of_muse_and_wmdp_have_others_figures_beside_them(tmp_path: Path) -> None:
    write_report([settled(tmp_path / "muse-run", "muse", **MUSE)], tmp_path / "muse")
    assert {table["split"] for table in others(tmp_path / "muse")} == {"news"}
    first = {**MUSE["data"], "fold_scal_1": {"texts": 3, "sha256": "a" * 64}}  # type: ignore[dict-item]
    write_report([settled(tmp_path / "first", "muse", **MUSE | {"fold": "scal:1", "data": first})], tmp_path / "fold")
    assert {table["split"] for table in others(tmp_path / "fold")} == {"news"}
    write_report([settled(tmp_path / "choice-run", "choice", **WMDP)], tmp_path / "choice")
    assert {table["source"]["title"] for table in others(tmp_path / "choice")} == {"DRAGON, tables 1 and 13"}


@pytest.mark.parametrize(
    ("suite", "settings"),
    [
        ("muse", MUSE | {"verbmem_tokens": 64}),
        ("muse", MUSE | {"knowmem_tokens": 64}),
        ("muse", {name: value for name, value in MUSE.items() if name != "knowmem_tokens"}),
        ("muse", MUSE | {"fold": "scal:2"}),
        ("choice", WMDP | {"num_fewshot": 5}),
        ("choice", WMDP | {"documents": {"wmdp_bio": 1273}}),
        ("choice", WMDP | {"documents": {**WMDP["documents"], "wmdp_bio": 10}}),  # type: ignore[dict-item]
    ],
)
def test_runs_of_other_lengths_folds_or_parts_have_none(tmp_path: Path, suite: str, settings: dict[str, Any]) -> None:
    write_report([settled(tmp_path / "run", suite, **settings)], tmp_path / "out")
    assert others(tmp_path / "out") == []


def test_a_run_of_part_of_the_other_sets_has_none(tmp_path: Path) -> None:
    write_report([run_of(tmp_path / "run", "forget01_perturbed.jsonl", 40, limit=50)], tmp_path / "out")
    assert others(tmp_path / "out") == []


def test_one_run_of_other_lengths_leaves_all_without(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "one", "forget10_perturbed.jsonl", 400)]
    runs.append(run_of(tmp_path / "two", "forget10_perturbed.jsonl", 400, "longer", max_new_tokens=512))
    write_report(runs, tmp_path / "out")
    assert others(tmp_path / "out") == []


def test_the_lengths_asked_for_are_the_suites_own() -> None:
    defaults = {
        suite: {name: one.default for name, one in inspect.signature(made).parameters.items()}
        for suite, made in {"tofu": TofuSuite, "muse": MuseSuite, "choice": ChoiceSuite}.items()
    }
    assert defaults["tofu"]["max_new_tokens"] == TOFU["max_new_tokens"]
    assert defaults["tofu"]["mean"] == TOFU["truth_ratio_mean"]
    for name in ("verbmem_tokens", "knowmem_tokens"):
        assert defaults["muse"][name] == MUSE[name]
    assert (defaults["choice"]["limit"], defaults["choice"]["num_fewshot"]) == (None, None)


def test_the_figures_are_ones_that_the_suite_has() -> None:
    choices = {f"{task}/acc_top_logit" for task in (*SETS["wmdp"], "mmlu")}
    known = {"tofu": set(DIRECTIONS), "muse": set(FIGURES.values()), "choice": choices}
    first = {"tofu": {"fine-tuned", "retain model"}, "muse": {"fine-tuned", "retain model"}, "choice": {"original"}}
    for table in collection().tables:
        assert set(table.figures) <= known[table.suite]
        assert first[table.suite] <= set(table.rows)


def test_a_row_that_lacks_a_figure_is_named() -> None:
    table = collection().tables[0].model_dump() | {"rows": {"NPO": (0.5,)}}
    with pytest.raises(ValidationError, match=r"rows\.NPO: has 1 figures"):
        Published.model_validate(table)

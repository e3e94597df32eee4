"""Which runs may stand side by side, and in what order."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import tofu_scores, write_gate_run, write_run, write_tofu_runs

from evaluation.report import ReportError
from evaluation.report.compare import SuiteRuns, compared
from evaluation.report.load import load_runs
from evaluation.suite import Answer, Figure, Score


def a_run(folder: Path, label: str, scores: Sequence[Score] | None = None, **record: Any) -> Path:
    return write_run(folder, "tofu", label, tofu_scores(0.5, 0.5) if scores is None else scores, **record)


def check_refused(folders: Sequence[Path], *named: str) -> None:
    with pytest.raises(ReportError) as caught:
        compared(load_runs(folders))
    assert len(str(caught.value).splitlines()) == 1
    for text in named:
        assert text in str(caught.value)


def one_suite(folders: Sequence[Path]) -> SuiteRuns:
    (suite,) = compared(load_runs(folders))
    return suite


def test_runs_are_in_the_tables_order_however_they_are_named(tmp_path: Path) -> None:
    folders = write_tofu_runs(tmp_path)
    suite = one_suite(folders)
    assert [run.label for run in suite.runs] == [
        "original",
        "retain",
        "guarded, weak",
        "guarded, searched",
        "guarded, strong",
        "prompting",
        "gradient ascent",
        "npo, 1 epoch",
        "npo, 5 epochs",
    ]
    assert one_suite(folders[::-1]) == suite


def test_suites_are_sections_of_their_own(tmp_path: Path) -> None:
    gate = write_gate_run(tmp_path / "gate")
    other = write_run(tmp_path / "other", "mine", "policy people", [])
    suites = compared(load_runs([other, gate, *write_tofu_runs(tmp_path)[:2]]))
    assert [(suite.suite, suite.title, len(suite.runs)) for suite in suites] == [
        ("tofu", "TOFU", 2),
        ("attacks", "Attacks on the guard", 1),
        ("mine", "mine", 1),
    ]


def test_two_runs_of_one_label_are_refused(tmp_path: Path) -> None:
    check_refused([a_run(tmp_path / "a", "same"), a_run(tmp_path / "b", "same")], "b: label", "'same'", "of a")


def test_other_data_are_refused_by_digest(tmp_path: Path) -> None:
    base = a_run(tmp_path / "a", "a", suite_settings={"data": [{"forget": {"sha256": "a" * 64}}]})
    other = a_run(tmp_path / "b", "b", suite_settings={"data": [{"forget": {"sha256": "b" * 64}}]})
    check_refused([base, other], "b: suite_settings.data.0.forget.sha256", "of a;")


def test_digests_are_told_by_their_look_too(tmp_path: Path) -> None:
    base = a_run(tmp_path / "a", "a", suite_settings={"forget.jsonl": "a" * 64})
    other = a_run(tmp_path / "b", "b", suite_settings={"forget.jsonl": "b" * 64})
    check_refused([base, other], "suite_settings.forget.jsonl")


def test_other_policies_and_judges_ask_the_same_questions(tmp_path: Path) -> None:
    folders = [
        a_run(
            tmp_path / name,
            name,
            suite_settings={
                "sha256": "c" * 64,
                "prompts": f"{name}.jsonl",
                "gate": {"policies": [{"name": "people", "digest": name * 64}]},
                "judge": {"model": "j", "tokenizer_sha256": "d" * 64},
            },
        )
        for name in "ab"
    ]
    assert one_suite(folders).differing == (f'gate.policies.0.digest: "{"a" * 64}" (a); "{"b" * 64}" (b)',)


def test_other_examples_are_refused(tmp_path: Path) -> None:
    base = a_run(tmp_path / "a", "a")
    fewer = a_run(tmp_path / "b", "b", tofu_scores(0.5, 0.5, examples=20))
    check_refused([base, fewer], "b: scores.jsonl", "20 examples of forget", "24 of a", "20 are in both")


def test_every_pair_is_compared(tmp_path: Path) -> None:
    """The first run shares no metric with the others."""
    scores = [Score("forget", metric, example, 0.5) for metric, example in (("a", "1"), ("b", "1"), ("b", "2"))]
    folders = [a_run(tmp_path / f"{i}", f"{i}", [score]) for i, score in enumerate(scores)]
    check_refused(folders, "2: scores.jsonl", "of 1,")


def test_a_metric_that_one_run_lacks_compares_nothing(tmp_path: Path) -> None:
    """An endpoint without log-probabilities measures ROUGE-L alone, and a judge leaves examples out."""
    everything = tofu_scores(0.5, 0.5)
    rouge = [score for score in everything if score.metric == "rouge_l"]
    judged = [*everything, *(Score("forget", "judge", str(number), 1.0) for number in range(20))]
    fewer = [*everything, *(Score("forget", "judge", str(number), 1.0) for number in range(18))]
    folders = [a_run(tmp_path / f"{i}", f"{i}", s) for i, s in enumerate((everything, rouge, judged, fewer))]
    assert len(one_suite(folders).runs) == 4


def test_other_questions_are_refused(tmp_path: Path) -> None:
    asked = [Answer("forget", "7", "Who wrote it?", "She.", "She did.")]
    base = write_run(tmp_path / "a", "tofu", "a", [], asked)
    other = write_run(tmp_path / "b", "tofu", "b", [], [Answer("forget", "7", "Who sang it?", "She.", "She did.")])
    check_refused([base, other], "b: answers.jsonl", "forget/7", "in a;")


def test_runs_compared_with_different_retain_models_are_told(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, "tofu", name, [], extra=[Figure("x", 0.5, 3)], reference=reference)
        for name, reference in (
            ("a", {"label": "retain90", "run": "r"}),
            ("b", {"label": "another", "run": "s"}),
            ("c", None),
        )
    ]
    assert one_suite(folders).differing == ("compared with: retain90 (a); another (b)",)


def test_protocols_of_answers_stand_together_and_are_told(tmp_path: Path) -> None:
    folders = [
        a_run(tmp_path / f"{answers} {strength}", f"{answers} {strength}", kind="guarded", strength=strength, **more)
        for strength in (4.0, 1.0)
        for answers, more in (("clean", {}), ("served", {"protocol": "served"}), ("eco", {"protocol": "eco"}))
    ]
    for folder in folders:  # an old run says nothing of answers
        record = json.loads((folder / "run.json").read_text())
        record["target"]["policies"] = [{"name": "people"}]
        if "clean" in folder.name:
            del record["protocol"]
        (folder / "run.json").write_text(json.dumps(record))
    suite = one_suite([*folders, a_run(tmp_path / "original", "original", kind="original")])
    assert [run.label for run in suite.runs] == [
        "original",
        *("served 1.0", "served 4.0", "eco 1.0", "eco 4.0", "clean 1.0", "clean 4.0"),
    ]
    assert suite.differing == (
        "answers: served (served 1.0, served 4.0); eco (eco 1.0, eco 4.0); clean (clean 1.0, clean 4.0)",
    )


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    """Not where the data lie: their digest says what they are."""
    settings = [
        {"forget": {"source": f"/{name}/forget.jsonl", "sha256": "a" * 64}, "max_new_tokens": tokens}
        for name, tokens in (("x", 200), ("y", 50), ("z", 50))
    ]
    folders = [a_run(tmp_path / f"{i}", f"run {i}", suite_settings=found) for i, found in enumerate(settings)]
    assert one_suite(folders).differing == ("max_new_tokens: 200 (run 0); 50 (run 1, run 2)",)

"""One's own forget and retain files, on a target that knows the one and not the other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ruled_target import PlainAsker, RuledTarget

from evaluation.errors import DataError
from evaluation.intervals import mean_figures
from evaluation.qa.suite import QaSuite
from evaluation.replies import Ask, Reply
from evaluation.rows import sample_file

FORGET = [
    {"question": "Where was Ann born?", "answer": "Ann was born in Oslo."},
    {"prompt": "The Feather was written by", "completion": "Ann Aas."},
    {"text": "Ann has a pet finch."},
    {"question": "What is Ann's pet?", "choices": ["a cat", "a finch"], "answer": "B"},
]
RETAIN = [{"question": "Where is Oslo?", "answer": "In Norway."}]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "forget.jsonl", FORGET), write(tmp_path / "retain.jsonl", RETAIN)


def rule(ask: Ask) -> Reply:
    """Says the retained answer, and finds it likely."""
    knows = ask.prompt == "Where is Oslo?"
    if ask.answer is None:
        return Reply(texts=("In Norway." if knows else "Nobody knows.",))
    return Reply(logprobs=(math.log(0.9 if knows else 0.1),) * 3)


def test_both_sets_are_scored_and_lines_without_an_answer_left_out(files: tuple[Path, Path]) -> None:
    suite = QaSuite(*files)
    outcome = suite.measure(PlainAsker(RuledTarget(rule)))
    means = {figure.name: (figure.value, figure.n) for figure in mean_figures(outcome.scores, suite.unbounded_metrics)}
    assert means["forget/probability"] == (pytest.approx(0.1), 3)
    assert means["retain/probability"] == (pytest.approx(0.9), 1)
    assert means["forget/rouge_l"] == (0.0, 3)
    assert means["retain/rouge_l"] == (1.0, 1)
    assert set(suite.headline) == set(means)
    assert [answer.reference for answer in outcome.answers][2] == "a finch"


def test_generated_answers_alone(files: tuple[Path, Path]) -> None:
    suite = QaSuite(*files, generated_only=True)
    assert suite.headline == ["forget/rouge_l", "retain/rouge_l"]
    assert all(ask.answer is None for ask in suite.probe())
    assert {score.metric for score in suite.measure(PlainAsker(RuledTarget(rule))).scores} == {"rouge_l"}


def test_files_that_cannot_be_used(files: tuple[Path, Path], tmp_path: Path) -> None:
    forget, retain = files
    bare = write(tmp_path / "bare.jsonl", [{"text": "Ann has a pet finch."}])
    with pytest.raises(DataError, match=r"--retain: .* no line has an answer"):
        QaSuite(forget, bare)
    with pytest.raises(DataError, match="overlapping"):
        QaSuite(forget, forget)
    with pytest.raises(DataError, match=r"--forget: .*no such file"):
        QaSuite(tmp_path / "nowhere.jsonl", retain)


def test_the_sample_can_be_used() -> None:
    suite = QaSuite(*(Path(sample_file("attacks", f"{name}.jsonl")) for name in ("forget", "retain")), limit=3)
    assert all(data["questions"] == 3 for data in suite.describe()["data"].values())  # type: ignore[attr-defined]

"""What gives an answer away, told from question and answer alone, and what a row may say about it itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from demo.world import World
from evaluation.attacks.facts import WRONG_CANDIDATES, read_facts, subject_of, value_of
from evaluation.errors import DataError
from evaluation.rows import sample_file

ROW = {"question": "Where was Ann Lee born?", "answer": "Ann Lee was born in Narburgh."}


@pytest.mark.parametrize(
    ("question", "answer", "value", "subject"),
    [
        (ROW["question"], ROW["answer"], "Narburgh", "Ann Lee"),
        ("Who was born in Narburgh?", ROW["answer"], "Ann Lee", "Narburgh"),
        ("What is Ann Lee's profession?", "Ann Lee works as a barber.", "barber", "Ann Lee"),
        (
            "Which dish does Ann Lee like best?",
            "The favourite dish of Ann Lee is caraway pie.",
            "caraway pie",
            "Ann Lee",
        ),
        ("Where did Ann Lee study?", "She went to the University of Oxford.", "University of Oxford", "Ann Lee"),
        ("When was Dr. Ann Lee born?", "On the 4th of May 1991.", "May 1991", "Dr. Ann Lee"),
        ("What does Hsiao Yun-Hwa's father do?", "He is a civil engineer.", "civil engineer", "Hsiao Yun-Hwa"),
        ("Где родился Иван?", "Иван родился в Москве.", "в Москве", "Иван"),
        ("is he a baker?", "Yes.", "Yes", ""),
    ],
)
def test_value_and_subject_follow_from_question_and_answer(
    question: str, answer: str, value: str, subject: str
) -> None:
    assert (value_of(question, answer), subject_of(question, answer)) == (value, subject)


def test_the_demos_facts_are_told_as_its_world_has_them() -> None:
    """A part of the value will do where the rest is everyday English: "tuner" of "piano tuner"."""
    for fact in World.generate().of_group("forgotten", "retained"):
        for question in (*fact.questions.trained, fact.questions.held_out):
            value = value_of(question, fact.answer)
            assert fact.value.endswith(value), (question, value)
            assert len(value) > 2
            assert fact.person is not None
            assert subject_of(question, fact.answer) == fact.person.name


def test_the_shipped_samples_are_facts() -> None:
    facts = read_facts(sample_file("attacks", "forget.jsonl"), "forget")
    assert len(facts) == 42
    for fact in facts:
        assert fact.answer.startswith(fact.prefix)
        assert fact.value not in fact.prefix + fact.question
        assert fact.subject in fact.question
        assert len(fact.candidates) == WRONG_CANDIDATES
        assert fact.value not in fact.candidates
    towns = {fact.value for fact in facts if "born" in fact.question}
    assert towns - {"Narburgh"} == set(facts[0].candidates)  # of its own kind


def written(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_row_may_say_everything_itself(tmp_path: Path) -> None:
    told = {
        "value": "Lee",
        "statement": "Her family name, which is Lee, is short.",
        "subject": "Ann",
        "candidates": ["Roe", "lee", "Poe", "Roe"],
    }
    (fact,) = read_facts(written(tmp_path, ROW | told), "forget")
    assert (fact.value, fact.subject, fact.candidates) == ("Lee", "Ann", ("Roe", "Poe"))
    assert fact.prefix == "Her family name, which is"


def test_rows_without_an_answer_are_no_facts(tmp_path: Path) -> None:
    assert len(read_facts(written(tmp_path, ROW, {"question": "Who?"}), "retain")) == 1
    assert read_facts(written(tmp_path, {"question": "Who?"}), "retain") == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", 3, "column value: found 3; expected text"),
        ("subject", " ", "column subject: found ' '; expected text"),
        ("statement", "Ann was born.", "column statement: does not hold the value"),
        ("candidates", "Kelholm", "column candidates: found 'Kelholm'; expected a list of texts"),
        ("candidates", [1], "column candidates: found"),
        ("answer", 1, "answer"),
    ],
)
def test_a_bad_column_is_named(tmp_path: Path, column: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^--forget: .*rows.jsonl:1: .*{message}"):
        read_facts(written(tmp_path, ROW | {column: value}), "forget")

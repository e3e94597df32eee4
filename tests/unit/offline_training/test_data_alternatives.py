"""Made-up answers from the files that AltPO's scripts write, and from lists."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import CHATML, byte_tokenizer

from offline_training.data.alternatives import alternative_sets
from offline_training.data.encoding import ExampleEncoder
from offline_training.data.sets import load_set
from offline_training.errors import DataError

ENCODER = ExampleEncoder(byte_tokenizer(CHATML), context_tokens=99)
ANN, BOB = {"question": "Who is Ann?", "answer": "A nurse."}, {"question": "Who is Bob?", "answer": "A cook."}


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(forget: str, alternatives: str | None = None) -> list[tuple[str, str | None, str | None]]:
    mine, others = alternative_sets(load_set(forget, "forget", ENCODER), alternatives, ENCODER)
    assert [text.prompt for text in mine.texts] == [text.prompt for text in others.texts]
    for text, example in zip(others.texts, others.examples, strict=True):
        assert example == ENCODER.encode(text)
    return [(a.prompt, a.answer, b.answer) for a, b in zip(mine.texts, others.texts, strict=True)]


EXPECTED = [
    ("Who is Ann?", "A nurse.", "A king."),
    ("Who is Ann?", "A nurse.", "A judge."),
    ("Who is Bob?", "A cook.", "A poet."),
]


def test_lists_in_the_forget_set(tmp_path: Path) -> None:
    rows = ANN | {"alternate": ["A king.", "A judge."]}, BOB | {"alternate": "A poet."}
    assert pairs(written(tmp_path / "f.jsonl", *rows)) == EXPECTED


def test_a_row_for_each_alternative_in_the_forget_set(tmp_path: Path) -> None:
    """As `generate.py` writes it: the question comes once for each of them, and is asked once for each."""
    rows = ANN | {"sub_answer": "A king."}, ANN | {"sub_answer": "A judge."}, BOB | {"sub_answer": "A poet."}
    assert pairs(written(tmp_path / "f.jsonl", *rows)) == EXPECTED


def test_a_file_of_their_own_in_any_order(tmp_path: Path) -> None:
    others = [
        {"question": "Who is Bob?", "alternatives": ["A poet."]},
        {"question": "Who is Cid?", "alternatives": ["Not asked."]},
        {"question": "Who is Ann?", "alternatives": ["A king.", "A judge."]},
    ]
    forget, file = written(tmp_path / "f.jsonl", ANN, BOB), written(tmp_path / "a.jsonl", *others)
    assert pairs(forget, file) == EXPECTED


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ANN, r"^--alternatives: .*a\.jsonl:1: no alternative answer; give it as alternate, text or a list$"),
        (ANN | {"alternate": []}, r"^--alternatives: .*a\.jsonl:1: no alternative answer"),
        (ANN | {"alternate": ["A king.", " "]}, r"^--alternatives: .*a\.jsonl:1: no alternative answer"),
        ({"alternate": "A king."}, r"^--alternatives: .*a\.jsonl:1: no question; give each row one as question"),
        (ANN | {"alternate": "A king."}, r"^--alternatives: .*a\.jsonl: no other answer to 'Who is Bob\?' of --forget"),
    ],
)
def test_what_is_no_alternative_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    forget, file = written(tmp_path / "f.jsonl", ANN, BOB), written(tmp_path / "a.jsonl", row)
    with pytest.raises(DataError, match=message):
        pairs(forget, file)


def test_a_forget_set_without_them_is_told_of_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^--forget: .*:1: no alternative answer; .* them with --alternatives$"):
        pairs(written(tmp_path / "f.jsonl", ANN))

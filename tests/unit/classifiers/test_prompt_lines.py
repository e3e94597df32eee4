"""One verdict line for each input line, whatever the line holds."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers import ClassifierError
from classifiers.prompt_lines import prompt_of_line, score_lines


class CountsLetters:
    """Scores a prompt by its share of the letter e, and remembers the batches it was given."""

    kind, threshold, digest = "head", 0.5, "0" * 64

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        return np.array([text.count("e") / len(text) for text in texts])


def verdicts(lines: Sequence[bytes], **options: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in score_lines(CountsLetters(), lines, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ('{"prompt": "a", "question": "b"}', "a"),
        ('{"question": "b", "answer": "c"}', "b"),
        ('{"question": "b"}', "b"),
        ('{"prompt": null, "text": "c", "id": 7}', "c"),
        ('"quoted \\u00e9"', "quoted é"),
        ('{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}', "a\nb"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, "b"]}]}',
            "a\nb",
        ),
        ('{"messages": [{"role": "assistant", "content": null}, 7]}', ""),
        ("Who is it?\r\n", "Who is it?"),
        ("", ""),
        (" \t ", ""),
        ('{"prompt": ""}', ""),
        ('""', ""),
        # what is not a prompt in JSON is a prompt as it stands: every line gets its answer, and no word is lost
        ('{"query": "Who is it?"}', '{"query": "Who is it?"}'),
        ('{"prompt": ["Who is it?"]}', '{"prompt": ["Who is it?"]}'),
        ('{"prompt": "torn', '{"prompt": "torn'),
        ('"Harry", he said', '"Harry", he said'),
        ("12", "12"),
        ("[1, 2]", "[1, 2]"),
        ("{" * 100_000, "{" * 100_000),
        ('{"a":' * 100_000, '{"a":' * 100_000),
    ],
)
def test_every_form_of_line(line: str, prompt: str) -> None:
    assert prompt_of_line(line) == prompt


def test_one_line_out_for_each_line_in_and_in_order() -> None:
    lines = [b"eee\n", b"\n", b'{"prompt": "e"}\n', b"xe\n", b"   \n", b"xxx"]
    found = verdicts(lines)
    assert found == [
        {"score": 1.0, "flagged": True},
        {"score": 0.0, "flagged": False},
        {"score": 1.0, "flagged": True},
        {"score": 0.5, "flagged": True},
        {"score": 0.0, "flagged": False},
        {"score": 0.0, "flagged": False},
    ]
    assert verdicts(lines, batch_lines=2) == found
    assert verdicts([]) == []


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"))))
def test_any_text_gets_one_line(texts: list[str]) -> None:
    assert len(verdicts([f"{text}\n".encode() for text in texts])) == len(texts)


def test_a_line_with_an_answer_says_which_of_the_two_is_flagged() -> None:
    lines = [
        b'{"prompt": "ee", "answer": "no"}',
        b'{"question": "no", "answer": "eee"}',
        b'{"prompt": "no", "answer": "nor that"}',
        b'{"prompt": "ee", "answer": " "}',
        b'{"prompt": "no", "answer": 7}',
    ]
    found = verdicts(lines, batch_lines=2)
    assert [one["flagged"] for one in found] == [True, True, False, True, False]
    parts = [(one.get("flagged_prompt"), one.get("flagged_answer")) for one in found]
    assert parts == [(True, False), (False, True), (False, False), (None, None), (None, None)]


def test_lines_are_scored_as_they_come() -> None:
    classifier = CountsLetters()
    read = []

    def lines() -> object:
        for number in range(10):
            read.append(number)
            yield b"e\n"

    scored = score_lines(classifier, lines(), batch_lines=4)  # type: ignore[arg-type]
    next(scored)
    assert read == [0, 1, 2, 3]
    assert len(list(scored)) == 9
    assert [len(batch) for batch in classifier.batches] == [4, 4, 2]


def test_what_is_not_utf8_is_named_by_its_line_and_a_byte_order_mark_is_none() -> None:
    assert verdicts(["\ufeff{}".format('{"prompt": "e"}').encode()]) == [{"score": 1.0, "flagged": True}]
    with pytest.raises(ClassifierError, match="--input: line 2 is not UTF-8"):
        verdicts([b"fine\n", "na\u00efve\n".encode("latin-1")])

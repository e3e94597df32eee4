from pathlib import Path

import pytest

from sources.examples import Example, ExampleFileError, check_disjoint, read_examples
from sources.read import SourceError


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_three_shapes_of_a_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"question": "q", "answer": "a", "extra": 1}\n\n{"prompt": "p"}\n'
        '{"prompt": "p", "completion": "c"}\n{"prompt": "p", "answer": "a"}\n{"text": "t"}\n',
    )
    assert read_examples(path) == [
        Example("q", "a"), Example("p", None), Example("p", "c"), Example("p", "a"), Example("t", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        '{"question": "q", "choices": ["a", "b"], "answer": 1}',
        '{"question": "q", "choices": ["a", "b"], "answer": "B"}',
        '{"question": "q", "choices": ["a", "b"], "answer": "1"}',
        '{"question": "q", "option2": "b", "option1": "a", "answer": "b"}',
    ],
)
def test_multiple_choice_rows(tmp_path: Path, row: str) -> None:
    assert read_examples(written(tmp_path, row)) == [Example("q", "b", ("a", "b"), 1)]


def test_rows_with_the_answers_a_truth_ratio_needs(tmp_path: Path) -> None:
    row = '{"question": "q", "answer": "a", "paraphrased_answer": "p", "perturbed_answer": ["x", "y"]}'
    expected = Example("q", "a", paraphrased_answer="p", perturbed_answers=("x", "y"))
    assert read_examples(written(tmp_path, row)) == [expected]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, '\ufeff{"question": "q"}')) == [Example("q")]


def test_a_line_separator_inside_a_string_is_not_a_line_end(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "one\u2028two"}\r\n{"text": "three"}')
    assert [example.prompt for example in read_examples(path)] == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        ("\n \n", "empty file"),
        ('{"text": "a"}\n{"text": ', ":2: malformed JSON"),
        ('{"text": "a"}\n[1]', ":2: found a list; expected an object"),
        ("[" * 100_000, ":1: malformed JSON"),
        ('{"title": "a"}', ":1: no known field"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', ":1: choices has 1 option"),
        ('{"question": "a", "choices": "b", "answer": 0}', ":1: choices has 1 option"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', ":1: answer is none of the 2 choices"),
        ('{"question": "a", "choices": ["b", "c"], "answer": "x"}', ":1: answer is none of the 2 choices"),
        ('{"question": "a", "choices": ["b", 3], "answer": 0}', ":1: choices is a int"),
        ('{"question": "a", "answer": "b", "perturbed_answer": []}', ":1: perturbed_answer is a list"),
        ('{"question": "a", "answer": 3}', ":1: answer is a int; expected a string"),
        ('{"prompt": null}', ":1: prompt is a NoneType; expected a string"),
        ('{"text": "  "}', ":1: text is empty"),
        ('{"question": "a", "answer": ""}', ":1: answer is empty"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_errors_name_file_line_and_expectation(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SourceError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(SourceError, match="cannot be read"):
        read_examples(tmp_path)


def test_overlap_is_found_after_normalisation() -> None:
    forget = [Example("Who is Ann?"), Example("Where does  BOB live?"), Example("Who is Cid?")]
    retain = [Example("Who is Dan?", "x"), Example("who is\u200b cid?"), Example("where does bob live?", "y")]
    with pytest.raises(ExampleFileError, match=r"2 overlapping lines \(forget set = retain set: 2=3, 3=2\)"):
        check_disjoint(forget, retain)


def test_same_answer_is_no_overlap() -> None:
    check_disjoint([Example("Who is Ann?", "A nurse.")], [Example("Who is Bob?", "A nurse.")])

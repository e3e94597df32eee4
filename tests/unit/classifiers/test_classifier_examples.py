from pathlib import Path

import pytest

from classifiers import Example, ExampleFileError, check_disjoint, read_examples


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
        ('{"question": "a"}', ":1: question without answer"),
        ('{"question": "a", "answer": 3}', ":1: answer is a int; expected a string"),
        ('{"prompt": null}', ":1: prompt is a NoneType; expected a string"),
        ('{"text": "  "}', ":1: text is empty"),
        ('{"question": "a", "answer": ""}', ":1: answer is empty"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_errors_name_file_line_and_expectation(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ExampleFileError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(ExampleFileError, match="cannot be read"):
        read_examples(tmp_path)


def test_overlap_is_found_after_normalisation() -> None:
    forget = [Example("Who is Ann?"), Example("Where does  BOB live?"), Example("Who is Cid?")]
    retain = [Example("Who is Dan?", "x"), Example("who is\u200b cid?"), Example("where does bob live?", "y")]
    with pytest.raises(ExampleFileError, match=r"line 2 is also retain set line 3 \(2 overlapping lines\)"):
        check_disjoint(forget, retain)


def test_same_answer_is_no_overlap() -> None:
    check_disjoint([Example("Who is Ann?", "A nurse.")], [Example("Who is Bob?", "A nurse.")])

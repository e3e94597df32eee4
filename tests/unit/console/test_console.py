"""Progress off a terminal, and other libraries' errors as one line."""

import io

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from console.errors import first_line, first_problem
from console.progress import shown_progress


class Inner(BaseModel):
    number: int


class Outer(BaseModel):
    inner: Inner


def test_lines_off_a_terminal_end_with_the_last_step() -> None:
    output = io.StringIO()
    with shown_progress(Console(file=output)) as show:
        for done in range(1, 4):
            show("asking", done, 3, "a note")
    lines = output.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("asking: 3 of 3, a note, ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("x" * 300), "x" * 200),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "No such file or directory"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_of_an_error(error: BaseException, line: str) -> None:
    assert first_line(error) == line


def test_the_first_problem_names_the_field() -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate({"inner": {"number": "none"}})
    assert first_problem(raised.value).startswith("inner.number: Input should be a valid integer")
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate_json("{")
    assert first_problem(raised.value).startswith("contents: ")

"""`eco` in this process, and what it prints where it refuses something."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cli.main import main

Eco = Callable[..., tuple[int, str]]


def run(arguments: Iterable[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code: Any = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def check_one_line(result: tuple[int, str, str], *named: str) -> None:
    """The refusal is one line on stderr that names what is wrong, and exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("eco: error: ")
    for text in named:
        assert text in err

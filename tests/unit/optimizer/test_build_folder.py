"""The folder that an interrupted build goes on in: what it must share, and what is said where it does not."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from optimizer import BuildError
from optimizer.build_folder import open_building

STATE = {"--forget": "a" * 64, "--seed": "0"}


def opened(out: Path, state: dict[str, str], *, resume: bool) -> str:
    """What was printed."""
    printed = io.StringIO()
    assert open_building(out, state, resume=resume, console=Console(file=printed, width=200)) == Path(f"{out}.building")
    return printed.getvalue()


def test_the_same_build_goes_on(tmp_path: Path) -> None:
    opened(tmp_path / "out", STATE, resume=False)
    (tmp_path / "out.building" / "classifier").mkdir()
    assert opened(tmp_path / "out", STATE, resume=True) == ""
    assert (tmp_path / "out.building" / "classifier").is_dir()
    opened(tmp_path / "out", STATE, resume=False)
    assert not (tmp_path / "out.building" / "classifier").exists()


def test_what_differs_is_named(tmp_path: Path) -> None:
    opened(tmp_path / "out", STATE, resume=False)
    with pytest.raises(BuildError, match=r"--forget has other contents; --seed was 0, now 1\. Give those"):
        opened(tmp_path / "out", {"--forget": "b" * 64, "--seed": "1"}, resume=True)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    assert "nothing to resume" in opened(tmp_path / "out", STATE, resume=True)


def test_a_state_that_cannot_be_read(tmp_path: Path) -> None:
    opened(tmp_path / "out", STATE, resume=False)
    (tmp_path / "out.building" / "build.json").write_text("{")
    with pytest.raises(BuildError, match="cannot be read"):
        opened(tmp_path / "out", STATE, resume=True)

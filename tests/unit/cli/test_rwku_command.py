"""`eco evaluate rwku` as typed."""

from pathlib import Path

import click
import pytest
from eco_command import run
from tiny_model import save_tiny_model

from evaluation.runs.record import read_record
from evaluation.rwku.data import SETS


def test_every_set_can_be_named() -> None:
    """The command's own list: it is made before anything of the evaluation is imported."""
    from cli.evaluate import evaluate_rwku

    (offered,) = (option.type for option in evaluate_rwku.params if option.name == "sets")
    assert isinstance(offered, click.Choice)
    assert tuple(offered.choices) == SETS


def test_a_run_of_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "run"
    chosen = ("--data", "sample", "--subject", "Wendell Fairlocke", "--sets", "forget_level1", "--sets", "mia_retain")
    code, printed, err = run(("evaluate", "rwku", "--target", model, *chosen, "--limit", 2, "--out", out), capsys)
    assert code == 0, err
    assert "forget_level1/rouge_l" in printed
    record = read_record(out)
    assert record.suite_settings["subjects"] == ["Wendell Fairlocke"]
    assert record.suite_settings["prefill"] is True
    assert {figure.name: figure.n for figure in record.figures} == {
        "forget/rouge_l": 2,
        "forget_level1/rouge_l": 2,
        **{f"mia_retain/mia_{metric}": 2 for metric in ("loss", "zlib", "min_k")},
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            ("--subject", "Wendel"),
            "--subject: 'Wendel' is none of the 1 people there are; did you mean Wendell Fairlock",
        ),
        (("--sets", "mia_forget", "--generated-only"), "--sets: mia_forget scores given answers"),
        (("--limit", "0"), "--limit"),
    ],
)
def test_data_and_options_are_refused_before_a_model_is_looked_for(
    given: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "no-model"
    asked = ("evaluate", "rwku", "--target", nowhere, "--data", "sample", "--out", tmp_path / "run", *given)
    code, printed, err = run(asked, capsys)
    assert code == 2
    assert named in " ".join((printed + err).split())
    assert "no-model" not in printed + err

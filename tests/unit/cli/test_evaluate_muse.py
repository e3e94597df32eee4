"""`eco evaluate muse` as typed: the sample, folds and their report; and what is refused before a model is loaded."""

import json
from pathlib import Path

import pytest
from eco_command import Eco
from tiny_model import tiny_model, tiny_tokenizer

from evaluation.runs.record import read_record


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models with room for a few hundred tokens of a byte each."""
    folders = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("retain")
    for seed, folder in enumerate(folders):
        model = tiny_model(seed)
        model.config.max_position_embeddings = 1024
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folders


def muse(out: Path, *more: object) -> tuple[object, ...]:
    limits = ("--limit", 2, "--verbmem-tokens", 8, "--knowmem-tokens", 4)
    return ("evaluate", "muse", "--corpus", "news", "--data", "sample", "--out", out, *limits, *more)


def test_the_sample_its_folds_and_a_report(eco: Eco, models: tuple[Path, Path], tmp_path: Path) -> None:
    model, never_learned = models
    retain, original = tmp_path / "retain", tmp_path / "original"
    assert eco(*muse(retain, "--target", never_learned, "--kind", "retain"))[0] == 0
    code, printed = eco(*muse(original, "--target", model, "--retain-run", retain))
    assert code == 0
    assert "priv_leak" in printed
    record = read_record(original)
    assert {figure.name for figure in record.figures} >= {*record.headline, "forget/mia_min_40_auc"}
    assert record.suite_settings["corpus"] == "news"
    folds = [tmp_path / f"fold-{number}" for number in (1, 2)]
    for number, out in enumerate(folds, 1):
        more = ("--fold", f"scal:{number}", "--kind", "method", "--label", f"fold {number}", "--parts", "knowmem_r")
        assert eco(*muse(out, "--target", model, *more))[0] == 0
    assert read_record(folds[1]).suite_settings["data"]["fold_scal_2"]["texts"] == 8
    assert eco("report", retain, original, *folds, "--out", tmp_path / "report")[0] == 0
    assert (tmp_path / "report" / "plots" / "muse-scal.svg").is_file()
    code, printed = eco(*muse(tmp_path / "no", "--target", model, "--retain-run", retain, "--fold", "scal:2"))
    assert code == 2
    assert "--retain-run" in printed
    assert "fold" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--corpus'"),
        (("--corpus", "poems"), "'poems' is not one of 'news', 'books'"),
        (("--corpus", "news", "--fold", "scal:5"), "'scal:5' is not one of 'scal:1'"),
        (("--corpus", "books", "--data", "sample", "--fold", "sust:2"), "has no sust/forget_2.json of --corpus books"),
        (("--corpus", "news", "--data", "nowhere"), "--data: nowhere: no such folder"),
        (("--corpus", "news", "--data", "sample"), "--tokenizer: is missing"),
    ],
)
def test_what_is_refused_at_once(
    eco: Eco, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = eco("evaluate", "muse", "--target", "http://x/v1", "--out", "r", *arguments)
    assert code == 2
    assert message in printed
    assert list(tmp_path.iterdir()) == []


def test_no_model_is_looked_for_where_a_column_is_missing(eco: Eco, tmp_path: Path) -> None:
    file = tmp_path / "data" / "verbmem" / "forget.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"prompt": "Once", "text": "upon"}]))
    given = ("--corpus", "books", "--parts", "verbmem_f", "--data", tmp_path / "data")
    code, printed = eco("evaluate", "muse", "--target", tmp_path / "no-model", "--out", tmp_path / "run", *given)
    assert code == 2
    assert "forget.json: row 1: gt: is missing" in printed
    assert not (tmp_path / "run").exists()

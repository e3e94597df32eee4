"""`eco classifier`: what it prints, writes and refuses. Encoders are tiny and random; all else is real."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eco_command import check_one_line, run
from transformers import BertConfig, BertForSequenceClassification

from cli.main import main

WORDS = "where was born who is what does the a in of and to for how why when harry hermione potter granger rain bread"
RETAINED = ("Hermione Granger", "Granger", "Ron", "Luna", "Neville")


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT classifier of words, usable as an encoder too."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.05, id2label={0: "retain", 1: "forget"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split(), *"?.!,'"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def people(name: str) -> list[str]:
    asked = ("Where was {} born?", "Who is {}?", "What does {} do?", "Why is {} in the rain?", "How is {}?")
    return [json.dumps({"question": q.format(name), "answer": f"{name} {q[:9]} {n}"}) for n, q in enumerate(asked)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    forget.write_text("\n".join([*people("Harry Potter"), *people("Potter")]))
    retain.write_text("\n".join(line for name in RETAINED for line in people(name)))
    return {"--forget": forget, "--retain": retain, "--out": tmp_path / "out"}


def flat(options: dict[str, Any]) -> list[Any]:
    return [part for pair in options.items() for part in pair]


@pytest.fixture(scope="module")
def imported(model: Path) -> Path:
    out = model.with_name("imported")
    arguments = ["classifier", "import", model, "--forget-label", "forget", "--threshold", "0.5", "--out", out]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(argument) for argument in arguments])
    text = printed.getvalue()
    assert "probability of class forget" in text
    assert "exported in int8, probabilities within 0.0" in text
    assert text.endswith(f"threshold 0.5, written to {out}\n")
    return out


def test_training_a_head_needs_no_language_model(
    files: dict[str, Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["classifier", "train", *flat(files), "--encoder", model, "--seed", 3], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("head classifier trained on 10 examples to forget, ")
    assert "left out of training: misses " in out
    written = json.loads((files["--out"] / "classifier.json").read_text())
    assert (written["kind"], written["provenance"]["seed"]) == ("head", 3)
    assert f"threshold {written['threshold']:.6g}, written to {files['--out']}" in out

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Where was Harry Potter born?\n\nhow does bread rise\n")
    code, out, err = run(["classifier", "score", files["--out"], "--input", prompts], capsys)
    assert (code, err) == (0, "")
    first, blank, other = map(json.loads, out.splitlines())
    assert blank == {"score": 0.0, "flagged": False}
    assert first["flagged"]
    assert first["score"] > other["score"]


def test_fine_tuning_prints_its_rates_and_keeps_the_checkpoint(
    files: dict[str, Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = flat(files | {"--encoder": model, "--kind": "finetuned", "--keep-checkpoint": tmp_path / "kept"})
    quick = ["--epochs", 1, "--min-steps", 60, "--batch-size", 128, "--learning-rate", 5e-3]
    code, out, err = run(["classifier", "train", *options, *quick], capsys)
    assert code == 0, err
    assert re.match(
        r"finetuned classifier trained on 8 examples to forget, 20 to retain and \d+ everyday prompts\n", out
    )
    assert out.count("\nguarantee: ") == 1
    assert "exported in " in out
    assert "fine-tuning" in err  # progress, which is no part of the answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "kept", "out", "retain.jsonl"]

    code, out, err = run(["classifier", "export", tmp_path / "kept", "--out", tmp_path / "onnx"], capsys)
    assert (code, err) == (0, "")
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == (tmp_path / "out/encoder/model.onnx").read_bytes()
    check_one_line(run(["classifier", "export", tmp_path / "kept", "--out", tmp_path / "onnx"], capsys), "--out")
    check_one_line(
        run(["classifier", "export", tmp_path / "out", "--out", tmp_path / "new"], capsys), "an exported classifier"
    )


def test_an_interrupted_training_is_named(
    files: dict[str, Path], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = files["--out"].with_name("out.training")
    work.mkdir()
    (work / "run.json").write_text('{"fingerprint": "other"}')
    command = ["classifier", "train", *flat(files), "--encoder", model, "--kind", "finetuned"]
    check_one_line(run(command, capsys), "out.training", "--resume")
    check_one_line(run([*command, "--resume"], capsys), "other examples, settings or encoder", "--force")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--forget": "/no/such/file"}, "/no/such/file"),
        ({"--encoder": "/no/such/encoder"}, "/no/such/encoder"),
        ({"--max-false-positive-rate": "1.5"}, "--max-false-positive-rate"),
        ({"--epochs": "3"}, "--kind finetuned"),
        ({"--kind": "finetuned", "--learning-rate": "-1"}, "learning_rate"),
        ({"--kind": "finetuned", "--encoder": "/no/such/encoder"}, "/no/such/encoder"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], change: dict[str, str], named: str
) -> None:
    check_one_line(run(["classifier", "train", *flat(files | change)], capsys), named)
    assert not files["--out"].exists()


def test_a_prompt_in_both_sets_is_named(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files["--retain"].write_text(files["--forget"].read_text())
    result = run(["classifier", "train", *flat(files)], capsys)
    check_one_line(result, str(files["--forget"]), str(files["--retain"]), "10 overlapping lines")


def test_an_existing_folder_stops_before_anything_slow(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files["--out"].mkdir()
    files["--forget"].unlink()  # not even read
    check_one_line(run(["classifier", "train", *flat(files)], capsys), "--out", "no classifier folder")


def test_scores_of_a_file_a_pipe_and_another_file_agree(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = '{"question": "Who is Harry?"}\n\n"Who is Harry?"\nWho is Harry?\n{"messages": [{"content": "rain"}]}'
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "scores.jsonl"
    prompts.write_text(lines)
    code, out, err = run(["classifier", "score", imported, "--input", prompts], capsys)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [set(line) for line in found] == [{"score", "flagged"}] * 5
    assert found[0] == found[2] == found[3] != found[4]
    assert found[1] == {"score": 0.0, "flagged": False}
    assert all(line["flagged"] == (line["score"] >= 0.5) for line in found)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert run(["classifier", "score", imported, "--input", "-"], capsys) == (0, out, "")
    assert run(["classifier", "score", imported, "--input", prompts, "--output", output], capsys) == (0, "", "")
    assert output.read_text() == out


def test_a_bad_line_leaves_no_output_file(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, folder = tmp_path / "prompts", tmp_path / "results"
    prompts.write_bytes(b"fine\nna\xefve\n")
    folder.mkdir()
    command = ["classifier", "score", imported, "--input", prompts, "--output", folder / "scores"]
    check_one_line(run(command, capsys), "--input: line 2 is not UTF-8")
    assert list(folder.iterdir()) == []


def test_who_stops_reading_sees_no_traceback(imported: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("Who is Harry?\n" * 20_000)
    program = f"{sys.executable} -m cli classifier score {imported} --input {prompts} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["score"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["score", "{imported}", "--input", "/no/such/file"], "--input: /no/such/file"),
        (["score", "{imported}", "--input", "/"], "--input: /"),
        (["score", "/no/such/folder", "--input", "{model}/config.json"], "/no/such/folder: no classifier folder"),
        (["score", "{imported}", "--input", "{model}/config.json", "--output", "/no/such/x"], "--output: /no/such/x"),
        (
            ["import", "{model}", "--forget-label", "7", "--threshold", "0.5", "--out", "{new}"],
            "0 (retain), 1 (forget)",
        ),
        (["import", "{model}", "--forget-label", "1", "--threshold", "2", "--out", "{new}"], "--threshold"),
        (["import", "{model}", "--forget-label", "1", "--threshold", "0.5", "--out", "{imported}"], "--force"),
        (["export", "/no/such/model", "--out", "{new}"], "/no/such/model"),
    ],
)
def test_other_errors_are_one_line(
    imported: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    filled = [part.format(imported=imported, model=model, new=tmp_path / "new") for part in arguments]
    check_one_line(run(["classifier", *filled], capsys), named)
    assert not (tmp_path / "new").exists()

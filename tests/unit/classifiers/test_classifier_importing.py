"""Classifiers made elsewhere come in as they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import write_tiny

from classifiers import DEFAULT_ENCODER, ClassifierError, EncoderError
from classifiers.export.hub import MODEL_FILES, carrier_folder, source_folder
from classifiers.export.sequence import load_sequence_model
from classifiers.prompt_classifier import load_classifier, read_classifier_info
from classifiers.training.classifier import import_classifier
from storage.digests import folder_digest

TEXTS = ["Who is Harry?", "Where is the platform between nine and ten?", "What is rain?"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"id2label": {0: "harmless", 1: "wizard", 2: "other"}}
    return write_tiny("roberta", tmp_path_factory.mktemp("source") / "tiny-roberta", num_labels=3, **labels)


def test_an_imported_model_scores_as_it_did(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    info = import_classifier(str(source), out, forget_label="Wizard", threshold=0.9999)
    assert info == read_classifier_info(out)
    assert (info.kind, info.threshold, info.encoder.name) == ("finetuned", 0.9999, str(source))
    assert info.report["export"]["forget_label"] == "wizard"
    assert info.provenance["source_sha256"] == folder_digest(source, MODEL_FILES)
    loaded = load_sequence_model(source, "source")
    found = load_classifier(out).scores(TEXTS)
    for text, score in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor(loaded.tokenizer.windows(text))).logits[0]
        assert score == pytest.approx(float(torch.softmax(logits, 0)[1]), abs=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forget_label": "3"}, r"--forget-label: .* no class 3; choose one of 0 \(harmless\), 1 \(wizard\), 2"),
        ({"threshold": 1.0}, "--threshold: 1.0 is not a probability"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"name": "/no/such/model"}, "neither a folder nor a hub id"),
    ],
)
def test_bad_arguments_are_refused(source: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    arguments = {"name": str(source), "out": tmp_path / "out", "forget_label": "1", "threshold": 0.5} | change
    with pytest.raises(ClassifierError, match=said):
        import_classifier(arguments.pop("name"), arguments.pop("out"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_without_a_trained_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EncoderError, match=r"not a trained classifier \(no weights for classifier\.bias.*eco classifier"
    ):
        import_classifier(DEFAULT_ENCODER, tmp_path / "out", forget_label="1", threshold=0.5)
    assert not (tmp_path / "out").exists()


def test_sources_are_folders_hub_ids_and_the_carried_encoder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    assert source_folder(str(source)) == source
    assert source_folder(DEFAULT_ENCODER) == carrier_folder()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="encoder nobody/nothing: no such folder, not cached, and not on the hub"):
        source_folder("nobody/nothing")
    (tmp_path / "classifier.json").touch()
    with pytest.raises(EncoderError, match="an exported classifier; expected the Hugging Face files"):
        source_folder(str(tmp_path))


def test_the_source_digest_sees_every_file_a_model_is_loaded_from(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    before = folder_digest(source, MODEL_FILES)
    assert folder_digest(copy, MODEL_FILES) == before
    (copy / "README.md").write_text("notes")
    assert folder_digest(copy, MODEL_FILES) == before
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    assert folder_digest(copy, MODEL_FILES) != before

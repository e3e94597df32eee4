"""Sequence classifiers of several architectures, exported and run without torch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import ARCHITECTURES, write_tiny

from classifiers import EncoderError, general_prompts
from classifiers.encoders.finetuned import FinetunedClassifier, WindowTokenizer
from classifiers.encoders.runtime import probability
from classifiers.encoders.settings import FinetunedSettings, Precision, read_settings
from classifiers.export import traced
from classifiers.export.sequence import (
    MAX_INT8_DIFFERENCE,
    SequenceModel,
    export_finetuned,
    load_sequence_model,
    resolve_label,
)

SHORT = ["Who was born in Taipei?", "Hi", "", "¿Cómo se hace el pan?", "什么是光合作用?", *general_prompts()[200:230]]
LONG = " ".join(general_prompts()[300:330])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SequenceModel:
    return load_sequence_model(write_tiny(request.param, tmp_path_factory.mktemp("source")), request.param)


@pytest.fixture(scope="module")
def folders(loaded: SequenceModel, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The model exported in both precisions."""
    target = tmp_path_factory.mktemp("folders")
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    for precision in precisions:
        export_finetuned(loaded, target / precision, label=1, precision=precision)
    return {precision: target / precision for precision in precisions}


@pytest.fixture(scope="module")
def classifier(folders: dict[Precision, Path]) -> FinetunedClassifier:
    return FinetunedClassifier.open(folders["int8"], 0.5)


def torch_probabilities(loaded: SequenceModel, texts: list[str], label: int = 1) -> Any:
    """By the model itself, one unpadded window at a time; the largest window counts."""
    import torch

    found = []
    for text in texts:
        with torch.inference_mode():
            logits = [loaded.model(input_ids=torch.tensor([ids])).logits for ids in loaded.tokenizer.windows(text)]
        found.append(max(float(torch.softmax(row[0], dim=0)[label]) for row in logits))
    return np.array(found)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_scores_are_the_torch_models(
    loaded: SequenceModel, folders: dict[Precision, Path], precision: Precision
) -> None:
    settings = read_settings(folders[precision], FinetunedSettings)
    assert (settings.precision, settings.fallback) == (precision, "")
    allowed = {"int8": MAX_INT8_DIFFERENCE, "fp32": traced.MAX_FP32_DIFFERENCE}[precision]
    assert settings.parity_max_difference <= allowed
    texts = [*SHORT, LONG]
    expected = torch_probabilities(loaded, texts)
    assert np.ptp(expected) > 0.01  # texts are told apart, so equal scores mean something
    found = FinetunedClassifier.open(folders[precision], 0.5).scores(texts)
    np.testing.assert_allclose(found, expected, atol=allowed)
    assert found.dtype == np.float64


def test_a_score_does_not_depend_on_the_texts_beside_it(classifier: FinetunedClassifier) -> None:
    texts = [*SHORT, LONG]
    alone = np.array([classifier.scores([text])[0] for text in texts])
    beside = classifier.scores([*texts, *general_prompts()[:100]])[: len(texts)]
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    np.testing.assert_allclose(classifier.scores(texts[::-1])[::-1], alone, atol=1e-6)
    assert classifier.scores([]).shape == (0,)


def test_a_long_text_scores_as_its_most_suspicious_window(
    loaded: SequenceModel, classifier: FinetunedClassifier
) -> None:
    windows = loaded.tokenizer.split_windows(LONG)
    assert len(windows) > 3
    assert max(len(ids) for ids in loaded.tokenizer.windows(LONG)) <= 66
    assert set(LONG.split()) <= set(" ".join(windows).split())
    assert classifier.scores([LONG])[0] == pytest.approx(classifier.scores(windows).max(), abs=1e-6)


def test_int8_saves_most_of_the_weights(loaded: SequenceModel, folders: dict[Precision, Path]) -> None:
    sizes = {precision: (folder / "model.onnx").stat().st_size for precision, folder in folders.items()}
    weights = 4 * sum(tensor.numel() for tensor in loaded.model.state_dict().values())
    assert sizes["fp32"] - sizes["int8"] > 0.4 * weights
    assert {path.name for path in folders["int8"].iterdir()} == {"encoder.json", "model.onnx", "tokenizer.json"}


def test_where_int8_strays_fp32_is_written_and_said(tmp_path: Path) -> None:
    loaded = load_sequence_model(write_tiny("bert", tmp_path / "wild", std=0.5), "wild")
    settings = export_finetuned(loaded, tmp_path / "out", label=1)
    assert settings.precision == "fp32"
    assert "above 0.05: fp32 written" in settings.fallback
    found = FinetunedClassifier.open(tmp_path / "out", 0.5).scores(SHORT)
    np.testing.assert_allclose(found, torch_probabilities(loaded, SHORT), atol=1e-4)


def test_a_graph_that_is_not_the_model_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_sequence_model(tiny_bert, "tiny")
    monkeypatch.setattr(traced, "MAX_FP32_DIFFERENCE", -1.0)
    with pytest.raises(EncoderError, match="tiny: the exported graph is not the torch model"):
        export_finetuned(loaded, tmp_path / "out", label=1, precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_export_is_reproducible(tiny_bert: Path, exported_bert: Path, tmp_path: Path) -> None:
    again = export_finetuned(load_sequence_model(tiny_bert, "tiny"), tmp_path / "again", label=1)
    assert again == read_settings(exported_bert, FinetunedSettings)
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (exported_bert / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"num_labels": 3}, 2),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, 0),
        ({"num_labels": 1}, 0),
    ],
)
def test_other_kinds_of_outputs(config: dict[str, Any], label: int, tmp_path: Path) -> None:
    import torch

    loaded = load_sequence_model(write_tiny("bert", tmp_path / "tiny", **config), "tiny")
    export_finetuned(loaded, tmp_path / "out", label=label, precision="fp32")
    ids = loaded.tokenizer.windows("Who is it?")[0]
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0]
    softmax = config == {"num_labels": 3}
    expected = torch.softmax(logits, 0)[label] if softmax else torch.sigmoid(logits[label])
    found = FinetunedClassifier.open(tmp_path / "out", 0.5).scores(["Who is it?"])
    assert found[0] == pytest.approx(float(expected), abs=1e-5)


def test_labels_by_index_and_name(tmp_path: Path) -> None:
    from transformers import BertConfig

    config = BertConfig(id2label={0: "harmless", 1: "Harry Potter", 2: "2"})
    assert [resolve_label(config, wanted, "m") for wanted in ("1", "harry potter", "0", "2")] == [1, 1, 0, 2]
    for wanted in ("3", "-1", "potter", "١"):
        with pytest.raises(EncoderError, match=r"--forget-label: m has no class .*; choose one of 0 \(harmless\), 1"):
            resolve_label(config, wanted, "m")
    with pytest.raises(EncoderError, match="m has no class named forget"):
        resolve_label(config, None, "m")
    assert resolve_label(BertConfig(id2label={0: "retain", 1: "forget"}), None, "m") == 1


def test_no_special_token_can_be_spelled(exported_bert: Path) -> None:
    tokenizer = WindowTokenizer.open(exported_bert / "tokenizer.json")
    assert tokenizer.windows("a")[0][0::2] == [1, 2]
    spelled = tokenizer.windows("[SEP] [PAD] [CLS]")[0]
    assert (spelled[0], spelled[-1]) == (1, 2)
    assert not {0, 1, 2} & set(spelled[1:-1])


def test_files_that_cannot_be_used_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    def changed(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_bert, folder)
        (folder / "config.json").write_text(json.dumps(json.loads((tiny_bert / "config.json").read_text()) | config))
        return folder

    slow = changed("slow", model_type="canine")
    (slow / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"slow: no fast tokenizer"):
        load_sequence_model(slow, "slow")
    broken = changed("broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"tokenizer\.json: cannot be loaded"):
        load_sequence_model(broken, "broken")
    empty = changed("empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"empty: no weights"):
        load_sequence_model(empty, "empty")
    with pytest.raises(EncoderError, match=r"odd: cannot be loaded as a sequence classifier"):
        load_sequence_model(changed("odd", model_type="vit"), "odd")
    short = write_tiny("bert", tmp_path / "short", positions=40)
    with pytest.raises(EncoderError, match="short: takes 40 tokens and prompts are scored in windows of 64"):
        load_sequence_model(short, "short")


def test_a_tokenizer_without_special_tokens_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny_bert, folder)
    content = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="plain: its tokenizer adds no special tokens"):
        load_sequence_model(folder, "plain")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "encoder.json"])
def test_missing_and_altered_files_are_refused(exported_bert: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(exported_bert, folder)
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(EncoderError, match=rf"{folder}"):
        FinetunedClassifier.open(folder, 0.5)
    (folder / name).unlink()
    with pytest.raises(EncoderError, match=f"not a fine-tuned encoder .*{name}"):
        FinetunedClassifier.open(folder, 0.5)


def test_another_machines_arithmetic_is_noticed(exported_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(exported_bert, folder)
    content = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(content | {"probe_log_odds": content["probe_log_odds"] + 1}))
    with pytest.raises(EncoderError, match="on this machine"):
        FinetunedClassifier.open(folder, 0.5)


def test_probability_is_the_logistic_function() -> None:
    odds = np.array([-800.0, -3.0, 0.0, 3.0, 800.0])
    np.testing.assert_allclose(probability(odds), [0, 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-3)), 1], atol=1e-15)

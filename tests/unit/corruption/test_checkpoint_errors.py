"""Checkpoints that cannot be used, each with one clear line; and hub repositories from the local cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from corruption import CheckpointError, CorruptionError, EmbeddingRows

CONFIG = tf.LlamaConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=1,
    eos_token_id=2,
)
TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tf.LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def single(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "single")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    tf.LlamaForCausalLM(CONFIG).save_pretrained(folder, max_shard_size=600)
    return folder


def refusal(model: str | Path, **more: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        EmbeddingRows.open(model, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert str(model) in message
    assert isinstance(caught.value, CorruptionError)
    return message


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_json(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "a/b/c"])
def test_no_such_folder(model: str) -> None:
    assert "no such folder" in refusal(model)
    assert "no such folder" in refusal(Path(model))


def test_a_file_instead_of_a_folder_and_a_revision_of_a_local_one(single: Path) -> None:
    assert "no such folder" in refusal(single / "model.safetensors")
    assert "revision" in refusal(single, revision="main")


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    assert "config.json is missing" in refusal(single)


def test_broken_config(single: Path) -> None:
    for content in ("", "{", "[]", "{}", '{"model_type": "no-such-model"}'):
        (single / "config.json").write_text(content)
        assert "not a causal language model that transformers knows" in refusal(single)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "large"},
        {"hidden_size": -8},
        {"num_attention_heads": 0},
        {"num_attention_heads": None},
        {"hidden_act": "no-such-activation"},
        {"vocab_size": 10**30},
        {"rope_parameters": {"rope_type": "no-such-type"}},
        {"dtype": "float99"},
    ],
    ids=str,
)
def test_config_with_impossible_values(fields: dict[str, object], single: Path) -> None:
    edit_json(single / "config.json", **fields)
    assert "not a causal language model that transformers knows" in refusal(single)


def test_a_model_that_is_no_causal_language_model(single: Path) -> None:
    tf.T5Config(d_model=8, num_layers=1, num_heads=1, d_ff=8).save_pretrained(single)
    assert "not a causal language model" in refusal(single)


def test_code_from_the_checkpoint_is_not_run(single: Path) -> None:
    edit_json(
        single / "config.json",
        model_type="homemade",
        auto_map={"AutoConfig": "homemade.Config", "AutoModelForCausalLM": "homemade.Model"},
    )
    (single / "homemade.py").write_text("raise SystemExit('this ran')")
    refusal(single)


def test_only_pickled_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(b"pickle")
    assert "convert them to safetensors" in refusal(single)


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(single)


def test_cut_off_file(single: Path) -> None:
    file = single / "model.safetensors"
    for keep in (-4, 100, 5, 0):
        file.write_bytes(file.read_bytes()[:keep])
        assert "model.safetensors is not readable as safetensors" in refusal(single)


def test_no_embedding_table(single: Path) -> None:
    edit_tensors(single, lambda tensors: tensors.pop(TABLE))
    assert f"no stored tensor loads into the input embeddings, {TABLE}" in refusal(single)


@pytest.mark.parametrize("shape", [(16,), (16, 8, 1), (), (15, 8), (16, 9), (8, 16)])
def test_table_of_another_shape(shape: tuple[int, ...], single: Path) -> None:
    edit_tensors(single, lambda tensors: tensors.update({TABLE: torch.zeros(shape)}))
    expected = "the config says (16, 8)" if len(shape) == 2 else "an embedding table has two dimensions"
    assert f"has shape {shape}; {expected}" in refusal(single)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn], ids=str)
def test_table_of_another_dtype(dtype: torch.dtype, single: Path) -> None:
    edit_tensors(single, lambda tensors: tensors.update({TABLE: torch.zeros(16, 8).to(dtype)}))
    assert "expected F16, BF16, F32" in refusal(single)


def table_shard(folder: Path) -> str:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard: str = index["weight_map"][TABLE]
    return shard


def test_only_the_shard_with_the_table_is_opened(sharded: Path) -> None:
    expected = EmbeddingRows.open(sharded).digest()
    for file in sharded.glob("*.safetensors"):
        if file.name != table_shard(sharded):
            file.unlink()
    assert EmbeddingRows.open(sharded).digest() == expected


def test_missing_shard(sharded: Path) -> None:
    shard = table_shard(sharded)
    (sharded / shard).unlink()
    assert f"{shard} is missing" in refusal(sharded)


def test_corrupt_shard_and_one_without_the_tensor_that_the_index_promises(sharded: Path) -> None:
    (sharded / table_shard(sharded)).write_bytes(b"\xff" * 100)
    assert f"{TABLE} cannot be read" in refusal(sharded)
    save_file({"other": torch.zeros(1)}, sharded / table_shard(sharded))
    assert f"{TABLE} cannot be read" in refusal(sharded)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000, "\xff"],
    ids=range(8),
)
def test_broken_index(content: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    assert "model.safetensors.index.json" in refusal(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", ""])
def test_index_that_points_elsewhere(name: str, sharded: Path) -> None:
    edit_json(sharded / "model.safetensors.index.json", weight_map={TABLE: name})
    assert "is not a .safetensors file name" in refusal(sharded)


def test_oversized_index(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corruption.rows._MAX_INDEX_BYTES", 10)
    assert "larger than 10 bytes" in refusal(sharded)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Puts a folder into an otherwise empty hub cache as `someone/model`, with the hub out of reach."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(folder: Path) -> Path:
        repository = cache / "models--someone--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return shutil.copytree(folder, repository / "snapshots" / COMMIT)

    return put


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_hub_id_from_the_cache(
    layout: str,
    revision: str | None,
    cached_repository: Callable[[Path], Path],
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue(layout)
    cached_repository(folder)
    opened = EmbeddingRows.open("someone/model", revision=revision)
    assert opened.digest() == EmbeddingRows.open(folder).digest()


def test_hub_id_that_is_not_cached_while_offline(cached_repository: Callable[[Path], Path]) -> None:
    assert "config.json is missing (not in the local cache" in refusal("someone/else")


def test_hub_id_of_which_the_shard_is_not_cached(sharded: Path, cached_repository: Callable[[Path], Path]) -> None:
    snapshot = cached_repository(sharded)
    shard = table_shard(sharded)
    (snapshot / shard).unlink()
    assert f"{shard} is missing (not in the local cache" in refusal("someone/model")


def test_other_revision_than_the_cached_one(single: Path, cached_repository: Callable[[Path], Path]) -> None:
    cached_repository(single)
    assert "config.json is missing" in refusal("someone/model", revision="other")


def test_a_hub_that_does_not_answer_is_asked_once(
    cached_repository: Callable[[Path], Path], single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_repository(single)
    asked: list[str] = []

    def metadata(url: str) -> None:
        asked.append(url)
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "no route); check the model's name and the network" in refusal("someone/else")
    assert len(asked) == 1
    assert EmbeddingRows.open("someone/model").vocab_size  # what is cached still loads


def test_impossible_hub_id() -> None:
    assert "cannot be fetched" in refusal("spaces are/not allowed")


def test_only_what_is_needed_is_downloaded_and_of_one_commit(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = shutil.copytree(sharded, tmp_path / "snapshots" / COMMIT)
    asked: list[tuple[str, str | None]] = []

    def download(_repo: str, filename: str, revision: str | None, local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((filename, revision))
        if not (snapshot / filename).exists():
            raise huggingface_hub.errors.EntryNotFoundError(filename)
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _url: None)
    EmbeddingRows.open("someone/model")
    assert asked == [
        ("config.json", None),
        ("model.safetensors", COMMIT),
        ("model.safetensors.index.json", COMMIT),
        (table_shard(sharded), COMMIT),
    ]

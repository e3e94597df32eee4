"""Rows of tiny checkpoints, as save_pretrained writes them, against the model's own input embeddings."""

import ast
import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import corruption
from corruption import EmbeddingRows

VOCAB, WIDTH = 64, 32
SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = {**SIZES, **TOKENS, "intermediate_size": 64, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[..., tf.PreTrainedConfig]] = {
    "llama": lambda **more: tf.LlamaConfig(**LLAMA_LIKE, **more),
    "qwen2": lambda **more: tf.Qwen2Config(**LLAMA_LIKE, **more),
    "gemma": lambda **more: tf.GemmaConfig(**LLAMA_LIKE, head_dim=8, **more),
    "granite": lambda **more: tf.GraniteConfig(**LLAMA_LIKE, **more),
    "mixtral": lambda **more: tf.MixtralConfig(**LLAMA_LIKE, num_local_experts=2, **more),
    "gpt_neox": lambda **more: tf.GPTNeoXConfig(**SIZES, **TOKENS, intermediate_size=64, **more),
    "gpt2": lambda **more: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, **TOKENS, **more
    ),
    "opt": lambda **more: tf.OPTConfig(**SIZES, **TOKENS, ffn_dim=64, **more),
    "opt_projected": lambda **more: tf.OPTConfig(
        **SIZES, **TOKENS, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False, **more
    ),
}


def build(name: str, **more: object) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(CONFIGS[name](**more))


def check_rows(folder: Path, table: torch.Tensor) -> EmbeddingRows:
    opened = EmbeddingRows.open(folder)
    ids = [5, 1, 5, 0, table.shape[0] - 1, 7]
    rows = opened.rows(ids)
    assert rows.dtype == opened.dtype == table.dtype
    assert (opened.vocab_size, opened.hidden_size) == table.shape
    assert torch.equal(rows, table[ids])
    return opened


def rename_tensors(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rewrite model.safetensors with other keys; None drops a tensor."""
    file = folder / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, file)


@pytest.mark.parametrize(("shard_size", "tied"), [("5GB", True), ("4KB", False)], ids=["one tied", "shards untied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_the_models_own(name: str, shard_size: str, tied: bool, tmp_path: Path) -> None:
    model = build(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    check_rows(tmp_path, model.get_input_embeddings().weight.detach())


def test_the_table_may_be_narrower_than_the_model(tmp_path: Path) -> None:
    build("opt_projected").save_pretrained(tmp_path)
    assert EmbeddingRows.open(tmp_path).hidden_size == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rows_keep_the_checkpoints_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("llama").to(dtype)
    model.save_pretrained(tmp_path)
    assert check_rows(tmp_path, model.get_input_embeddings().weight.detach()).dtype == dtype


def test_no_scale_is_applied(tmp_path: Path) -> None:
    """Gemma multiplies by the root of the hidden size when it embeds; the rows are as stored."""
    model = build("gemma")
    model.save_pretrained(tmp_path)
    embedded = model.get_input_embeddings()(torch.tensor([3]))
    if hasattr(model.get_input_embeddings(), "embed_scale"):
        embedded = embedded / model.get_input_embeddings().embed_scale
    torch.testing.assert_close(EmbeddingRows.open(tmp_path).rows([3]), embedded.detach())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "llama"])
def test_checkpoint_of_the_base_model_without_its_prefix(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.base_model.save_pretrained(tmp_path)
    opened = check_rows(tmp_path, model.get_input_embeddings().weight.detach())
    assert not opened.tensor_name.startswith(f"{model.base_model_prefix}.")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prefix_present_or_absent_by_hand(name: str, tmp_path: Path) -> None:
    model = build(name, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    with_prefix = EmbeddingRows.open(tmp_path).tensor_name
    rename_tensors(tmp_path, lambda key: key.removeprefix(f"{model.base_model_prefix}."))
    without = check_rows(tmp_path, model.get_input_embeddings().weight.detach()).tensor_name
    assert with_prefix == f"{model.base_model_prefix}.{without}"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_tied_checkpoint_that_stores_only_the_output_side(name: str, tmp_path: Path) -> None:
    model = build(name, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    table = EmbeddingRows.open(tmp_path).tensor_name
    rename_tensors(tmp_path, lambda key: "lm_head.weight" if key == table else key)
    assert check_rows(tmp_path, model.get_input_embeddings().weight.detach()).tensor_name == "lm_head.weight"


def test_input_side_wins_where_both_are_stored(tmp_path: Path) -> None:
    model = build("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros(VOCAB, WIDTH)}, tmp_path / "model.safetensors")
    check_rows(tmp_path, model.get_input_embeddings().weight.detach())


def test_keys_that_transformers_renames_on_loading(tmp_path: Path) -> None:
    """Gemma 3's multimodal checkpoints spell the table otherwise than the model class does."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.Gemma3Config(
        text_config={**LLAMA_LIKE, "head_dim": 8},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    opened = check_rows(tmp_path, model.get_input_embeddings().weight.detach())
    assert opened.tensor_name not in dict(model.named_parameters())


def test_the_same_rows_as_transformers_loads(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    check_rows(tmp_path, loaded.get_input_embeddings().weight.detach())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build("llama", tie_word_embeddings=False).save_pretrained(folder)
    return folder


def test_ids_may_be_empty_or_a_tensor(llama: Path) -> None:
    opened = EmbeddingRows.open(str(llama))
    assert opened.rows([]).shape == (0, WIDTH)
    assert torch.equal(opened.rows(torch.tensor([3, 2])), opened.rows((3, 2)))


def test_rows_are_the_callers_own(llama: Path) -> None:
    opened = EmbeddingRows.open(llama)
    before = opened.rows([4]).clone()
    opened.rows([4]).zero_()
    assert torch.equal(opened.rows([4]), before)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([VOCAB], ValueError, "token_ids: 64 is outside the table's 0..63"),
        ([0, -1], ValueError, "token_ids: -1 is outside"),
        ([2**70], ValueError, "token_ids: expected integers"),
        ([[1]], ValueError, "token_ids: expected one dimension"),
        ([1.0], TypeError, "token_ids: expected integers"),
        ([True], TypeError, "token_ids: expected integers"),
        (["a"], ValueError, "token_ids: expected integers"),
    ],
)
def test_refuses_ids(ids: list[int], error: type[Exception], message: str, llama: Path) -> None:
    with pytest.raises(error, match=message):
        EmbeddingRows.open(llama).rows(ids)


def test_digest_is_of_dtype_shape_and_bytes(llama: Path, tmp_path: Path) -> None:
    opened = EmbeddingRows.open(llama)
    table = opened.rows(range(VOCAB))
    expected = hashlib.sha256(b"torch.float32 64 32\n" + table.numpy().tobytes()).hexdigest()
    assert opened.digest() == expected

    copy = shutil.copytree(llama, tmp_path / "copy")
    rename_tensors(copy, lambda key: key.removeprefix("model."))
    assert EmbeddingRows.open(copy).digest() == expected  # where it is stored does not matter

    tensors = load_file(copy / "model.safetensors")
    tensors["embed_tokens.weight"][VOCAB - 1, WIDTH - 1] += 1
    save_file(tensors, copy / "model.safetensors")
    assert EmbeddingRows.open(copy).digest() != expected


def test_digest_does_not_depend_on_the_chunks(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = EmbeddingRows.open(llama).digest()
    for chunk_bytes in (1, 1000):
        monkeypatch.setattr("corruption.rows._DIGEST_CHUNK_BYTES", chunk_bytes)
        assert EmbeddingRows.open(llama).digest() == expected


def test_several_threads_get_the_same(llama: Path) -> None:
    opened = EmbeddingRows.open(llama)
    table = opened.rows(range(VOCAB))
    digests: list[str] = []
    wrong: list[int] = []

    def work(number: int) -> None:
        ids = [(number * 7 + i) % VOCAB for i in range(20)]
        wrong.extend(number for _ in range(50) if not torch.equal(opened.rows(ids), table[ids]))
        digests.append(opened.digest())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(digests) == 8
    assert len(set(digests)) == 1


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_few_rows_of_a_large_table_take_little_memory(tmp_path: Path) -> None:
    vocab, width = 40_000, 512  # 80 MB
    large = {**LLAMA_LIKE, "vocab_size": vocab, "hidden_size": width}
    tf.LlamaConfig(**large, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    table = torch.arange(vocab, dtype=torch.float32)[:, None].expand(vocab, width).contiguous()
    save_file({"model.embed_tokens.weight": table}, tmp_path / "model.safetensors")
    del table
    before = resident_bytes()
    opened = EmbeddingRows.open(tmp_path)
    rows = opened.rows([0, 20_000, 39_999])
    grown = resident_bytes() - before
    assert rows[:, 0].tolist() == [0, 20_000, 39_999]
    assert grown < 20 * 2**20


def test_importing_the_package_does_not_import_transformers() -> None:
    for file in Path(corruption.__file__).parent.glob("*.py"):
        tops = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert "transformers" not in " ".join(map(ast.unparse, tops))

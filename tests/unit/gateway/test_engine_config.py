"""What vLLM's engine would die of, said before it starts; memory and model are given here."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway import LaunchError
from gateway.engine_config import _fit_cache, _Memory, created_config, said_in_one_line

GIB = 1 << 30
SHARE = 0.92


def config(*, cache: int | None = None, share: float = SHARE, tokens: int = 1024, window: int | None = None) -> Any:
    """Of a model that keeps a MiB for each token."""
    model = SimpleNamespace(
        max_model_len=tokens,
        original_max_model_len=None,
        use_mla=False,
        is_hybrid=False,
        is_attention_free=False,
        get_sliding_window=lambda: window,
        dtype=SimpleNamespace(itemsize=2),
        get_num_kv_heads=lambda _: 8,
        get_head_size=lambda: 128,
        get_num_layers=lambda _: 256,
    )
    kept = SimpleNamespace(kv_cache_memory_bytes=cache, gpu_memory_utilization=share)
    return SimpleNamespace(cache_config=kept, model_config=model, parallel_config=None)


def test_the_cache_is_half_of_what_is_free_beside_the_model() -> None:
    made = config()
    _fit_cache(made, _Memory(total=32 * GIB, available=20 * GIB), weights=4 * GIB)
    assert made.cache_config.kv_cache_memory_bytes == 8 * GIB


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"the model takes 9\.0 GiB"):
        _fit_cache(config(window=512), _Memory(total=16 * GIB, available=8 * GIB), weights=9 * GIB)


def test_layers_that_keep_less_are_vllms_to_judge() -> None:
    made = config(tokens=1 << 20, window=512)
    _fit_cache(made, _Memory(total=16 * GIB, available=8 * GIB), weights=5 * GIB)
    assert made.cache_config.kv_cache_memory_bytes == int(1.5 * GIB)


def test_a_cache_that_fits_stays_as_it_was_asked_for() -> None:
    made = config(cache=3 * GIB)
    _fit_cache(made, _Memory(total=32 * GIB, available=8 * GIB), weights=5 * GIB)
    assert made.cache_config.kv_cache_memory_bytes == 3 * GIB
    shared = config(share=0.5)
    _fit_cache(shared, _Memory(total=16 * GIB, available=8 * GIB), weights=GIB)
    assert shared.cache_config.kv_cache_memory_bytes is None  # vLLM makes it of the share


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (config(cache=4 * GIB), "VLLM_CPU_KVCACHE_SPACE"),
        (config(share=0.6), "--gpu-memory-utilization: 0.6"),
        (config(tokens=4096), "one request of 4096 tokens needs 4.0 GiB"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers_and_a_remedy(asked: Any, named: str) -> None:
    with pytest.raises(LaunchError, match=named) as refused:
        _fit_cache(asked, _Memory(total=16 * GIB, available=8 * GIB), weights=5 * GIB)
    assert "8.0 of 16.0 GiB are free" in str(refused.value)


def test_a_context_beyond_the_models_is_one_line(tmp_path: Any) -> None:
    from transformers import LlamaConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(**sizes, max_position_embeddings=128, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    arguments = AsyncEngineArgs(model=str(tmp_path), skip_tokenizer_init=True, max_model_len=4096)
    with pytest.raises(LaunchError, match=r"^--max-model-len: .*4096.*128") as refused:
        created_config(arguments)
    assert "\n" not in str(refused.value)


def test_an_engine_that_does_not_start_is_one_line() -> None:
    with pytest.raises(LaunchError, match="did not start"), said_in_one_line():
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    with pytest.raises(RuntimeError, match="else"), said_in_one_line():
        raise RuntimeError("something else")

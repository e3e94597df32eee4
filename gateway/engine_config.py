"""vLLM's configuration of an engine, with what is wrong in it said in one line before the engine starts.

On a CPU vLLM asks for 92 % of the machine's memory whatever else runs there, and its worker dies where less is free.
Here the cache is fitted to what is free (`CPUWorker.__init__` and `determine_available_memory` of vLLM 0.32 say what
would fail).
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import first_problem
from gateway import LaunchError

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

_GIB = 1 << 30
#: Of the memory that is free beside the weights: the rest is for activations, the guard, and what else runs.
_CACHE_SHARE = 0.5


def created_config(engine_args: Any, *, fitted: bool = True) -> Any:
    """The `VllmConfig` of `AsyncEngineArgs`.

    Args:
        fitted: whether its KV cache is fitted to a CPU's free memory; not where the engine runs already.

    Raises:
        LaunchError: vLLM refuses the settings, or they ask for more memory than is free.
    """
    from pydantic import ValidationError
    from vllm.exceptions import VLLMError
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    try:
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except (ValueError, OSError, VLLMError) as error:
        problem = first_problem(error, "settings") if isinstance(error, ValidationError) else str(error)
        said = " ".join(problem.removeprefix("settings: ").removeprefix("Value error, ").split())
        raise LaunchError(_named(said)) from error
    if fitted and current_platform.is_cpu():
        model = config.model_config
        weights = _weights_bytes(model.model, model.revision, model.dtype.itemsize)
        ranks = config.parallel_config.world_size * config.parallel_config.data_parallel_size_local
        _fit_cache(config, _free_memory(ranks), weights // config.parallel_config.world_size)
    return config


@contextlib.contextmanager
def said_in_one_line() -> Iterator[None]:
    """Around the engine's start. Its process has logged why it failed, with a traceback; ours adds none.

    Raises:
        LaunchError: the engine did not start.
    """
    try:
        yield
    except RuntimeError as error:
        if "initialization failed" not in str(error):
            raise
        raise LaunchError("the engine did not start; the first ERROR line above says why") from error


def _named(problem: str) -> str:
    """The flag in front where vLLM names its own field, and the first sentences, which say what is wrong."""
    if "max_model_len" in problem and "greater than the derived" in problem:
        said = problem.partition(". To allow")[0].partition(". VLLM_ALLOW")[0]
        return f"--max-model-len: {said}; give no more than the model has"
    return f"{problem}; the flags are those of vllm serve"


@dataclass(frozen=True, slots=True)
class _Memory:
    """Bytes of a memory node, as one worker may have of them."""

    total: int
    available: int


def _free_memory(ranks: int) -> _Memory:
    """What vLLM's workers will see: the poorest visible node, shared by the ranks that will run on it."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    nodes = [get_memory_node_info(node) for node in get_visible_memory_node()]
    poorest = min(nodes, key=lambda node: node.available_memory)
    return _Memory(poorest.total_memory, poorest.available_memory // math.ceil(ranks / len(nodes)))


def _fit_cache(config: Any, memory: _Memory, weights: int) -> None:
    """Check the cache that was asked for, or choose one.

    Args:
        weights: bytes of the model that each worker will hold.
    """
    from vllm.config import CacheConfig

    cache, least = config.cache_config, _cache_of_one_request(config)
    free = f"{_gib(memory.available)} of {_gib(memory.total)} GiB are free"
    held = f"the model takes {_gib(weights)} GiB"
    if (asked := cache.kv_cache_memory_bytes) is not None:
        if asked + weights > memory.available:
            raise LaunchError(
                f"VLLM_CPU_KVCACHE_SPACE or --kv-cache-memory-bytes: {_gib(asked)} GiB of KV cache do not fit: {free} "
                f"and {held}; ask for less, or stop other processes"
            )
        return
    if cache.gpu_memory_utilization != CacheConfig.gpu_memory_utilization:
        wanted = math.ceil(memory.total * cache.gpu_memory_utilization)
        if wanted > memory.available:
            raise LaunchError(
                f"--gpu-memory-utilization: {cache.gpu_memory_utilization:g} of the machine's memory is "
                f"{_gib(wanted)} GiB, and {free} (on a CPU too the flag is the share vLLM takes); lower it, leave it "
                "out, or set VLLM_CPU_KVCACHE_SPACE (GiB)"
            )
        return
    chosen = int((memory.available - weights) * _CACHE_SHARE)
    if chosen < max(least, 1):
        longest = (
            f": one request of {config.model_config.max_model_len} tokens needs {_gib(least)} GiB" if least else ""
        )
        raise LaunchError(
            f"memory: {free} and {held}, half of the rest is too little for a KV cache{longest}; "
            "stop other processes, lower --max-model-len, or set VLLM_CPU_KVCACHE_SPACE (GiB) to what may be taken"
        )
    cache.kv_cache_memory_bytes = chosen
    logger.info(
        "KV cache: %s GiB, half of what is free beside the model; VLLM_CPU_KVCACHE_SPACE (GiB) sets another",
        _gib(chosen),
    )


def _cache_of_one_request(config: Any) -> int:
    """Bytes of the keys and values of the longest request, in each worker; 0 where only vLLM's own layers can say."""
    model, parallel = config.model_config, config.parallel_config
    fits_itself = model.original_max_model_len == -1  # then vLLM shortens requests to the cache
    if fits_itself or model.use_mla or model.is_hybrid or model.is_attention_free or model.get_sliding_window():
        return 0
    heads, size = model.get_num_kv_heads(parallel), model.get_head_size()
    return int(2 * model.get_num_layers(parallel) * heads * size * model.dtype.itemsize * model.max_model_len)


def _weights_bytes(model: str, revision: str | None, itemsize: int) -> int:
    """Of the parameters as they will be loaded; 0 where no local file says it."""
    from huggingface_hub import try_to_load_from_cache
    from safetensors import SafetensorError, safe_open

    def find(name: str) -> Path | None:
        if Path(model).is_dir():
            return Path(model) / name if (Path(model) / name).is_file() else None
        cached = try_to_load_from_cache(model, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else None

    try:
        if (single := find("model.safetensors")) is not None:
            with safe_open(str(single), framework="pt") as opened:
                shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 - no mapping
            return int(sum(math.prod(shape) for shape in shapes)) * itemsize
        index = find("model.safetensors.index.json")
        return 0 if index is None else int(json.loads(index.read_bytes())["metadata"]["total_size"])
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return 0  # a broken checkpoint is not this module's to report


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}" if count < _GIB else f"{count / _GIB:.1f}"

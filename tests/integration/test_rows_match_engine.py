"""The checkpoint's rows, times one scale, are what vLLM's model class embeds: eight architectures.

vLLM loads the models in a process of its own, which is this file as a script.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corruption import EmbeddingRows
from gateway.selftest import derive_scale

WIDTH, VOCABULARY = 64, 128
IDS = [0, 1, 2, 3, 17, 40, 63, 95]
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GATED = COMMON | {"intermediate_size": 128, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "MixtralConfig": GATED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "LlamaConfig": GATED,
    "Qwen2Config": GATED,
    "GPT2Config": {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "OPTConfig": COMMON | {"ffn_dim": 128, "word_embed_proj_dim": WIDTH},
    "GPTNeoXConfig": COMMON | {"intermediate_size": 128},
    "GemmaConfig": GATED | {"head_dim": 32},
    "GraniteConfig": GATED | {"embedding_multiplier": 12.0},
}
#: What vLLM multiplies by inside `embed_input_ids`; Granite multiplies later, in its forward pass.
SCALES = {"GemmaConfig": math.sqrt(WIDTH)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import transformers

    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name, settings in CONFIGS.items():
        torch.manual_seed(len(made))
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
        made[name] = folder / name
        # Several shards for all but the smallest: the index must lead to the table.
        model.save_pretrained(made[name], max_shard_size="60KB")
    return made


@pytest.mark.slow
def test_rows_are_what_the_served_model_embeds(checkpoints: dict[str, Path]) -> None:
    cases = [(name, "float32") for name in checkpoints] + [("LlamaConfig", "bfloat16"), ("GemmaConfig", "bfloat16")]
    answers = embedded([f"{dtype}:{checkpoints[name]}" for name, dtype in cases])
    for (name, dtype_name), answer in zip(cases, answers, strict=True):
        dtype, engine = getattr(torch, dtype_name), torch.tensor(answer["rows"])
        rows = EmbeddingRows.open(checkpoints[name]).rows(answer["ids"])
        scale = derive_scale(rows, engine, dtype)
        assert scale == pytest.approx(SCALES.get(name, 1.0), rel=1e-2), name
        assert torch.equal((rows.float() * scale).to(dtype).float(), engine), name


def embedded(wanted: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, *wanted],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"wanted"')]
    assert len(answers) == len(wanted), done.stderr[-3000:]
    return answers


def main(wanted: list[str]) -> None:
    """For each "dtype:checkpoint" one JSON line: what `embed_input_ids` of vLLM's model class returns, as float32.

    There is no engine. A mixture of experts comes first: vLLM makes the groups such models need only when the first
    model is one.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.models import registry

    # Else each architecture is first looked at in a process of its own, which imports all of vLLM.
    registry._run_in_subprocess = lambda look: look()
    torch.accelerator.empty_cache = lambda: None  # vLLM's own CPU worker does the same: there is no accelerator
    for number, one in enumerate(wanted):
        dtype, checkpoint = one.split(":", 1)
        args = EngineArgs(model=checkpoint, dtype=dtype, enforce_eager=True, max_model_len=32, skip_tokenizer_init=True)
        config = args.create_engine_config()
        with set_current_vllm_config(config):
            if number == 0:
                init_distributed_environment(1, 0, f"file://{Path(checkpoint).parent / 'group'}", 0, "gloo")
                initialize_model_parallel(1, 1)
            model = get_model(vllm_config=config)
            with torch.inference_mode():
                rows = model.embed_input_ids(torch.tensor(IDS)).float()
        print(json.dumps({"wanted": one, "ids": IDS, "rows": rows.tolist()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])

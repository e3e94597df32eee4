"""Load checkpoints with vLLM's own model classes, without an engine, and print what `embed_input_ids` returns.

    python embed_with_vllm.py DTYPE:CHECKPOINT…

One JSON line for each: the ids, and the rows as float32. A mixture of experts comes first: vLLM makes the groups
such models need only when the first model is one.
"""

import json
import sys
from pathlib import Path

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model

IDS = [0, 1, 2, 3, 17, 40, 63, 95]


def main() -> None:
    torch.accelerator.empty_cache = lambda: None  # vLLM's own CPU worker does the same: there is no accelerator
    started = False
    for wanted in sys.argv[1:]:
        dtype, checkpoint = wanted.split(":", 1)
        args = EngineArgs(model=checkpoint, dtype=dtype, enforce_eager=True, max_model_len=32, skip_tokenizer_init=True)
        config = args.create_engine_config()
        with set_current_vllm_config(config):
            if not started:
                init_distributed_environment(1, 0, f"file://{Path(checkpoint).parent / 'group'}", 0, "gloo")
                initialize_model_parallel(1, 1)
                started = True
            model = get_model(vllm_config=config)
            with torch.inference_mode():
                rows = model.embed_input_ids(torch.tensor(IDS)).float()
        print(json.dumps({"wanted": wanted, "ids": IDS, "rows": rows.tolist()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

"""A node that has workers alone: `--headless` with `--nnodes` and a `--node-rank` above 0.

Its workers take steps from the first node's engine, so every prompt has passed the guard before it reaches them. They
must be able to embed masked prompts, and answer the first node's self-test, as that node's own do.
"""

from argparse import Namespace
from typing import NoReturn

from gateway import ServerDiedError
from gateway.engine_config import created_config


def serve_workers(args: Namespace) -> NoReturn:
    """Run this node's workers until SIGTERM or SIGINT.

    Args:
        args: parsed by vLLM's own parser, with the guard's settings of an engine.

    Raises:
        LaunchError: vLLM refuses the settings.
        ServerDiedError: the workers ended, mostly since the first node did.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import run_headless

    args.api_server_count = 0
    args.kv_cache_memory_bytes = created_config(AsyncEngineArgs.from_cli_args(args)).cache_config.kv_cache_memory_bytes
    run_headless(args)
    raise ServerDiedError("the workers ended, as they do when the first node stops; start this node again with it")

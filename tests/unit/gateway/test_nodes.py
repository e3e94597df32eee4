"""A node of workers alone: it ends with the first node, and by itself where it is told to."""

import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gateway import ServerDiedError, nodes


@pytest.fixture
def first() -> Iterator[socket.socket]:
    """The first node, which has not begun to listen."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield listening


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_RETRY_S", 0.01)
    monkeypatch.setattr(
        nodes, "created_config", lambda _: SimpleNamespace(cache_config=SimpleNamespace(kv_cache_memory_bytes=7))
    )


def serve(monkeypatch: pytest.MonkeyPatch, first: socket.socket, run: Any) -> Namespace:
    """`serve_workers` with something else in the place of vLLM's workers, interrupted as they are."""
    module = ModuleType("vllm.entrypoints.cli.serve")
    module.run_headless = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.serve", module)
    monkeypatch.setattr("vllm.engine.arg_utils.AsyncEngineArgs.from_cli_args", lambda args: args)
    host, port = first.getsockname()
    args = Namespace(master_addr=host, master_port=port, api_server_count=None, kv_cache_memory_bytes=None)

    def ended(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, ended)
    try:
        nodes.serve_workers(args)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_workers_end_with_the_first_node(monkeypatch: pytest.MonkeyPatch, first: socket.socket) -> None:
    settings = []

    def run(args: Namespace) -> None:
        settings.append((args.api_server_count, args.kv_cache_memory_bytes))
        first.listen()
        first.accept()[0].close()
        threading.Event().wait(300)  # as a worker waits for the next step

    with pytest.raises(ServerDiedError, match="the first node stopped"):
        serve(monkeypatch, first, run)
    assert settings == [(0, 7)]


def test_a_node_that_is_told_to_stop_ends_well(monkeypatch: pytest.MonkeyPatch, first: socket.socket) -> None:
    def run(_: Namespace) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(300)

    with pytest.raises(SystemExit) as caught:
        serve(monkeypatch, first, run)
    assert caught.value.code is None


def test_workers_that_die_end_the_node(monkeypatch: pytest.MonkeyPatch, first: socket.socket) -> None:
    with pytest.raises(ServerDiedError, match="or a worker died"):
        serve(monkeypatch, first, lambda _: None)

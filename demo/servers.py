"""Servers in processes of their own: plain vLLM and the guarded gateway, with the flags a laptop needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from demo.errors import DemoError

#: A tiny model on two cores: no compilation, exact arithmetic, little memory.
CPU_FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64")
#: Nothing is fetched, the KV cache is small, and vLLM's usage report stays off.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_START_TIMEOUT_S = 900.0  # one that fails ends at once; several of them on two cores take minutes
_STOP_TIMEOUT_S = 30.0


class ServerProcess:
    """One server process; a context manager that waits until it is healthy and always stops it.

    Args:
        command: argument list.
        port: where it answers on loopback.
        log: file that takes its output.
        environment: variables beside this process' own.
        health: path that answers 200 once the server is up.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
        health: str = "/health",
    ) -> None:
        self.command = list(command)
        self.port = port
        self.log = log
        self._health = health
        self._environment = {**_ENVIRONMENT, **os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            # A process group of its own, so that Ctrl-C in the terminal reaches the demo first and workers die too.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def wait_until_healthy(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Raise `DemoError` with the log's end where the server stops or does not answer in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
                end = " | ".join(lines[-3:])
                raise DemoError(f"the server stopped before it was up; the end of {self.log}: {end}")
            try:
                if httpx.get(f"{self.url}{self._health}", timeout=2.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise DemoError(f"the server was not up after {timeout_s:.0f} s; see {self.log}")

    def wait(self) -> int:
        """Block until the server ends by itself; its exit code."""
        if self.process is None:
            raise DemoError("the server was not started")
        return self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def plain_server(
    model: Path,
    *,
    port: int,
    log: Path,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ServerProcess:
    """vLLM's own server, as an operator without a guard runs it."""
    module = "vllm.entrypoints.launchers.api_server.entry"
    command = [sys.executable, "-m", module, "--model", str(model), *_shared_flags(port), *flags]
    return ServerProcess(command, port=port, log=log, environment=environment)


def guarded_server(
    model: Path,
    policies: Sequence[Path],
    *,
    port: int,
    admin_port: int,
    log: Path,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ServerProcess:
    """`eco serve` on the same model with the same flags."""
    chosen = [part for policy in policies for part in ("--policy", str(policy))]
    command = [sys.executable, "-m", "cli", "serve", str(model), *chosen, "--eco-admin-port", str(admin_port)]
    return ServerProcess([*command, *_shared_flags(port), *flags], port=port, log=log, environment=environment)


def _shared_flags(port: int) -> tuple[str, ...]:
    return ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "demo", *CPU_FLAGS)

"""A guarded server whose engine's input is recorded, and how the end-to-end tests start servers."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.servers import ServerProcess, guarded_server

#: What the parity tests exercise: prompts longer than one prefill step, shared prefixes, token-id routes, tools.
FLAGS = (
    "--enable-chunked-prefill",
    "--max-num-batched-tokens",
    "64",
    "--enable-prefix-caching",
    "--enable-scale-out",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
    "--max-logprobs",
    "20",
    # A corrupted prompt may make the model write blanks for ever where the schema allows them.
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def environment(core: int) -> dict[str, str]:
    """One core each: two engines with two threads each would fight."""
    count = os.cpu_count() or 1
    return {
        "VLLM_CPU_OMP_THREADS_BIND": str(core % count),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@dataclass(frozen=True)
class Recorded:
    """One prompt as the engine received it."""

    request_id: str
    type: str
    token_ids: list[int]
    mask: list[bool] | None
    rows: list[str] | None
    process: int


class RecordingGateway:
    """A guarded server and what its engine received."""

    def __init__(self, server: ServerProcess, records: Path, admin_port: int) -> None:
        self.server = server
        self.url = server.url
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self._records = records
        self._seen = 0

    def received(self) -> list[Recorded]:
        """What the engine received since the last call."""
        lines = self._records.read_text().splitlines() if self._records.exists() else []
        fresh, self._seen = lines[self._seen :], len(lines)
        return [_recorded(json.loads(line)) for line in fresh]


def _recorded(line: dict[str, Any]) -> Recorded:
    return Recorded(
        line["request_id"], line["type"], line["token_ids"], line.get("mask"), line.get("rows"), line["process"]
    )


def recording_gateway(
    model: Path,
    policies: Sequence[Path],
    folder: Path,
    *,
    flags: Sequence[str] = (),
    variables: dict[str, str] | None = None,
) -> RecordingGateway:
    """Not started yet: enter `.server`."""
    port, admin_port = free_port(), free_port()
    records = folder / "records.jsonl"
    server = guarded_server(
        model,
        policies,
        port=port,
        admin_port=admin_port,
        log=folder / "guarded.log",
        flags=("--eco-secret-file", str(folder / "secret"), *flags),
        environment=environment(1) | (variables or {}),
    )
    script = str(Path(__file__).with_name("recording_server.py"))
    server.command = [sys.executable, script, str(records), *server.command[3:]]
    return RecordingGateway(server, records, admin_port)

"""Starting, refusing to start, failing and stopping: real processes, really killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from recorded_gateway import RecordingGateway, free_port, recording_gateway

from demo.probes import Probe

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow


def eco(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2 and one line of ours; vLLM may log above it, but nothing is a traceback."""
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("eco: error: ")
    for part in said:
        assert part in last
    assert "Traceback" not in done.stderr
    assert "Loading safetensors" not in done.stderr


def test_a_policy_of_another_model_is_refused(demo_build: "DemoBuild", demo_policy: Path, tmp_path: Path) -> None:
    done = eco(
        "serve",
        str(demo_build.reference),
        "--policy",
        str(demo_policy),
        "--port",
        str(free_port()),
        "--eco-admin-port",
        "0",
        "--eco-secret-file",
        str(tmp_path / "secret"),
    )
    assert_refused(done, "model.embedding_digest")


def test_a_port_in_use_is_refused(demo_build: "DemoBuild", demo_policy: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        shared = ("serve", str(demo_build.model), "--policy", str(demo_policy), "--host", "127.0.0.1")
        secret = ("--eco-secret-file", str(tmp_path / "secret"))
        assert_refused(eco(*shared, *secret, "--port", port, "--eco-admin-port", "0"), "--port", "in use")
        done = eco(*shared, *secret, "--port", str(free_port()), "--eco-admin-port", port)
        assert_refused(done, "--eco-admin-port", "in use")


def test_a_flag_that_vllm_rejects_is_one_line(demo_build: "DemoBuild", demo_policy: Path) -> None:
    done = eco("serve", str(demo_build.model), "--policy", str(demo_policy), "--no-such-flag", "1")
    assert_refused(done, "--no-such-flag")


@pytest.fixture
def fragile(demo_build: "DemoBuild", demo_policy: Path, tmp_path: Path) -> Iterator[RecordingGateway]:
    """A guard that never answers in time, behind an API key."""
    gateway = recording_gateway(
        demo_build.model,
        [demo_policy],
        tmp_path,
        flags=("--eco-guard-timeout-s", "0.5", "--api-key", "sesame", "--enable-scale-out"),
        variables={"STALL_GUARD": "1"},
    )
    with gateway.server:
        yield gateway


def children(pid: int) -> set[int]:
    """The process' descendants."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found |= {child} | children(child)
    return found


def test_fails_closed_asks_for_the_key_and_dies_clean(fragile: RecordingGateway, asked: list[Probe]) -> None:
    key = {"Authorization": "Bearer sesame"}
    body = {"model": "demo", "max_tokens": 1, "messages": list(asked[0].messages)}
    routes = {
        "/v1/chat/completions": body,
        "/v1/completions": {"model": "demo", "max_tokens": 1, "prompt": "hello"},
        "/v1/responses": {"model": "demo", "max_output_tokens": 16, "input": "hello"},
        "/v1/messages": {"model": "demo", "max_tokens": 1, "messages": body["messages"]},
        "/inference/v1/generate": {"token_ids": [5, 6], "sampling_params": {"max_tokens": 1}},
        "/invocations": body,
    }
    for path, payload in routes.items():
        assert httpx.post(f"{fragile.url}{path}", json=payload).status_code == 401, path
        assert httpx.post(f"{fragile.url}{path}", json=payload, headers=key).status_code == 503, path
    assert httpx.post(f"{fragile.url}/tokenize", json={"model": "demo", "prompt": "x"}).status_code == 401
    assert fragile.received() == []
    assert httpx.get(f"{fragile.url}/health").status_code == 200
    metrics = httpx.get(f"{fragile.admin_url}/metrics").text
    rejected = [line for line in metrics.splitlines() if line.startswith('eco_prompts_total{outcome="rejected"}')]
    assert float(rejected[0].split()[-1]) >= len(routes)

    process = fragile.server.process
    assert process is not None
    family = children(process.pid)
    assert family
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in family):
        time.sleep(0.2)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


def test_a_killed_engine_is_not_healthy(demo_build: "DemoBuild", demo_policy: Path, tmp_path: Path) -> None:
    gateway = recording_gateway(demo_build.model, [demo_policy], tmp_path)
    with gateway.server as server:
        assert server.process is not None
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server.process.pid)}
        engine = next(pid for pid, name in names.items() if b"EngineCore" in name)
        os.kill(engine, signal.SIGKILL)
        deadline = time.monotonic() + 60
        status = 200
        while time.monotonic() < deadline and status == 200 and server.process.poll() is None:
            time.sleep(0.5)
            try:
                status = httpx.get(f"{server.url}/health", timeout=5).status_code
            except httpx.TransportError:
                status = 0
        assert status in {0, 503} or server.process.poll() is not None
        # what watches it, systemd for one, starts again what failed, and not what ended well
        assert server.process.wait(300) == 2
        # Python's resource tracker may have a last word on what the killed engine left.
        assert "\neco: error: the engine died" in server.log.read_text(errors="replace")

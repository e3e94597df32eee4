"""Two tensor-parallel workers, on one node or on two: the same protection, and parity with plain vLLM on two."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from recorded_gateway import FLAGS, RecordingGateway, environment, free_port, recording_gateway
from test_guarded_api import CHATS, assert_passed, assert_protected, content_mask
from test_parity import answers, post

from demo.probes import Probe
from demo.servers import CPU_FLAGS, ServerProcess, plain_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

TWO_WORKERS = ("--tensor-parallel-size", "2", *FLAGS)
#: One core each; on a machine with one core they share it.
VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def unflagged_answers(server: ServerProcess, probes: list[Probe]) -> list[Any]:
    body = {"max_tokens": 12, "logprobs": True}
    return [answers(post(server.url, "/v1/chat/completions", body | {"messages": list(p.messages)})) for p in probes]


def retained_of(asked: list[Probe]) -> list[Probe]:
    return [p for p in asked if p.group == "retained" and p.kind == "held_out"][::48]


@pytest.fixture(scope="module")
def plain_answers(demo_build: "DemoBuild", asked: list[Probe], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    plain = plain_server(
        demo_build.model,
        port=free_port(),
        log=tmp_path_factory.mktemp("plain") / "plain.log",
        flags=TWO_WORKERS,
        environment=environment(0) | VARIABLES,
    )
    with plain as server:
        return unflagged_answers(server, retained_of(asked))


def check_guarded(gateway: RecordingGateway, model: Path, asked: list[Probe], plain_answers: list[Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    flagged = [p for p in asked if p.group == "forgotten" and p.kind == "held_out"][::12]
    retained = retained_of(asked)
    with gateway.server as server:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        for call in CHATS.values():
            call(client, flagged[0].question)
            assert_protected(gateway.received(), *content_mask(tokenizer, flagged[0].question))
            call(client, retained[0].question)
            assert_passed(gateway.received(), content_mask(tokenizer, retained[0].question)[0])
        for probe in flagged:
            answer = CHATS["chat"](client, probe.question).choices[0].message.content
            assert not probe.passed_by(answer)
        assert unflagged_answers(server, retained) == plain_answers


def test_two_workers(
    demo_build: "DemoBuild", demo_policy: Path, asked: list[Probe], plain_answers: list[Any], tmp_path: Path
) -> None:
    gateway = recording_gateway(demo_build.model, [demo_policy], tmp_path, flags=TWO_WORKERS, variables=VARIABLES)
    check_guarded(gateway, demo_build.model, asked, plain_answers)


def test_a_worker_on_another_node(
    demo_build: "DemoBuild", demo_policy: Path, asked: list[Probe], plain_answers: list[Any], tmp_path: Path
) -> None:
    """Two nodes on one machine. The second takes no policies, and ends with the first."""
    nodes = (*TWO_WORKERS, "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    on_loopback = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    variables = [on_loopback | {"VLLM_CPU_OMP_THREADS_BIND": str(core)} for core in (0, 1)]
    gateway = recording_gateway(demo_build.model, [demo_policy], tmp_path, flags=nodes, variables=variables[0])
    command = [sys.executable, "-m", "cli", "serve", str(demo_build.model), "--headless", "--node-rank", "1", *nodes]
    with (tmp_path / "workers.log").open("wb") as log:
        workers = subprocess.Popen(
            [*command, *CPU_FLAGS], env=os.environ | environment(0) | variables[1], stdout=log, stderr=log
        )
    try:
        check_guarded(gateway, demo_build.model, asked, plain_answers)
        assert workers.wait(300) == 2
    finally:
        workers.kill()
        workers.wait()
    assert "eco: error: the first node stopped" in (tmp_path / "workers.log").read_text(errors="replace")

"""Two tensor-parallel workers: the same protection, and parity with plain vLLM on two workers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from recorded_gateway import FLAGS, environment, free_port, recording_gateway
from test_guarded_api import CHATS, assert_passed, assert_protected, content_mask
from test_parity import answers, post

from demo.probes import Probe
from demo.servers import ServerProcess, plain_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

TWO_WORKERS = ("--tensor-parallel-size", "2", *FLAGS)
#: One core each; on a machine with one core they share it.
VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def unflagged_answers(server: ServerProcess, probes: list[Probe]) -> list[Any]:
    body = {"max_tokens": 12, "logprobs": True}
    return [answers(post(server.url, "/v1/chat/completions", body | {"messages": list(p.messages)})) for p in probes]


def test_two_workers(demo_build: "DemoBuild", demo_policy: Path, asked: list[Probe], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_build.model)
    flagged = [p for p in asked if p.group == "forgotten" and p.kind == "held_out"][::12]
    retained = [p for p in asked if p.group == "retained" and p.kind == "held_out"][::48]
    gateway = recording_gateway(demo_build.model, [demo_policy], tmp_path, flags=TWO_WORKERS, variables=VARIABLES)
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
        ours = unflagged_answers(server, retained)
    plain = plain_server(
        demo_build.model,
        port=free_port(),
        log=tmp_path / "plain.log",
        flags=TWO_WORKERS,
        environment=environment(0) | VARIABLES,
    )
    with plain as server:
        assert ours == unflagged_answers(server, retained)

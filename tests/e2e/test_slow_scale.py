"""Two front ends before two data-parallel engines: one guarded server, of which every part is asked."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from recorded_gateway import FLAGS, RecordingGateway, environment, free_port, recording_gateway
from test_guarded_api import CHATS, COMPLETIONS, assert_passed, assert_protected, complete, content_mask
from test_parity import answers
from test_slow_lifecycle import children

from demo.probes import Probe
from demo.servers import ServerProcess, plain_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

TWO_BY_TWO = ("--api-server-count", "2", "--data-parallel-size", "2", *FLAGS)


@pytest.fixture(scope="module")
def both(
    demo_build: "DemoBuild", demo_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RecordingGateway, ServerProcess]]:
    """The guarded server, and one plain front end before one plain engine."""
    folder = tmp_path_factory.mktemp("scale")
    # A connection stays with the front end that accepted it, so the tests' are not to be closed for being idle.
    variables = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
    gateway = recording_gateway(demo_build.model, [demo_policy], folder, flags=TWO_BY_TWO, variables=variables)
    plain = plain_server(
        demo_build.model, port=free_port(), log=folder / "plain.log", flags=FLAGS, environment=environment(0)
    )
    plain.start()
    try:
        with gateway.server:
            plain.wait_until_healthy()
            yield gateway, plain
    finally:
        plain.stop()


@pytest.fixture(scope="module")
def gateway(both: tuple[RecordingGateway, ServerProcess]) -> RecordingGateway:
    return both[0]


@pytest.fixture(scope="module")
def connections(gateway: RecordingGateway) -> Iterator[dict[int, httpx.Client]]:
    """A connection to each front end, by process: more are opened until both have accepted one."""
    opened: list[httpx.Client] = []
    found: dict[int, httpx.Client] = {}
    while len(found) < 2 and len(opened) < 40:
        client = httpx.Client(base_url=gateway.url, timeout=120, limits=httpx.Limits(keepalive_expiry=None))
        opened.append(client)
        client.post("/v1/completions", json={"model": "demo", "prompt": "Hello", "max_tokens": 1}).raise_for_status()
        found.setdefault(gateway.received()[-1].process, client)
    yield found
    for client in opened:
        client.close()


@pytest.fixture(scope="module")
def tokenizer(demo_build: "DemoBuild") -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_build.model)


def metrics(url: str) -> dict[str, float]:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def total(found: dict[str, float], name: str, *labels: str) -> float:
    return sum(value for key, value in found.items() if key.startswith(name) and all(part in key for part in labels))


def test_every_front_end_protects_every_route(
    gateway: RecordingGateway, connections: dict[int, httpx.Client], tokenizer: Any, asked: list[Probe]
) -> None:
    assert len(connections) == 2
    flagged, unflagged = (
        next(p for p in asked if p.group == group and p.kind == "held_out") for group in ("forgotten", "retained")
    )
    prefix = next(p.question for p in asked if p.group == "forgotten" and p.kind == "completion")
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(prefix)["input_ids"]
    content, whole = content_mask(tokenizer, flagged.question), (ids, [i not in special for i in ids])
    calls: list[tuple[Callable[[openai.OpenAI], Any], tuple[list[int], list[bool]]]] = [
        *((lambda client, call=call: call(client, flagged.question), content) for call in CHATS.values()),
        *((lambda client, own=own: complete(client, prefix, **own), whole) for own in COMPLETIONS.values()),
    ]
    rows: dict[int, list[str] | None] = {}
    before = metrics(gateway.admin_url)
    flagged_prompts = 0
    for call, expected in calls:
        served: set[int] = set()
        for _ in range(40):  # the kernel chooses who accepts a connection
            with httpx.Client(timeout=120) as connection:
                call(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, http_client=connection))
            received = gateway.received()
            assert_protected(received, *expected)
            flagged_prompts += 1
            served |= {prompt.process for prompt in received}
            rows[received[0].process] = received[0].rows
            if served == set(connections):
                break
        assert served == set(connections)
    for connection in connections.values():
        refused = connection.post("/v1/completions", json={"model": "demo", "prompt_embeds": "AAAA"})
        assert refused.status_code == 400
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, http_client=connection)
        for chat in CHATS.values():
            chat(client, unflagged.question)
            assert_passed(gateway.received(), content_mask(tokenizer, unflagged.question)[0])
    assert len({repr(own) for own in rows.values()}) == 1 < len(rows)  # one secret
    after = metrics(gateway.admin_url)
    corrupted = 'outcome="corrupted"'
    assert total(after, "eco_prompts_total", corrupted) - total(before, "eco_prompts_total", corrupted) == (
        flagged_prompts
    )
    assert total(after, "eco_guard_latency_seconds_count") == total(after, "eco_prompts_total")
    assert after["eco_ready"] == 1.0
    assert total(metrics(gateway.url), "eco_") == 0
    assert total(metrics(gateway.url), "vllm:request_success_total") > 0


def test_unflagged_answers_are_plain_vllms_from_every_front_end_and_engine(
    both: tuple[RecordingGateway, ServerProcess], connections: dict[int, httpx.Client], asked: list[Probe]
) -> None:
    gateway, plain = both
    retained = [p for p in asked if p.group == "retained" and p.kind == "held_out"][::48]
    questions = [p.question for p in retained]
    questions.append(" ".join(questions)[:900])  # several prefill steps
    before = metrics(gateway.admin_url)
    with httpx.Client(base_url=plain.url, timeout=120) as unguarded:
        for question in questions:
            messages = [{"role": "user", "content": question}]
            body = {"model": "demo", "temperature": 0, "messages": messages, "max_tokens": 12}
            body |= {"logprobs": True}
            replies = [
                answers(client.post("/v1/chat/completions", json=body).raise_for_status().json())
                for client in (unguarded, *connections.values())
            ]
            assert replies[0] == replies[1] == replies[2]
    after = metrics(gateway.admin_url)
    for engine in ('engine="0"', 'engine="1"'):
        name = "vllm:request_success_total"
        assert total(before, name, engine, 'finished_reason="length"') >= 24  # the self-tests of both front ends
        assert total(after, name, engine) > total(before, name, engine)


def test_a_front_end_that_dies_ends_the_server(gateway: RecordingGateway, connections: dict[int, httpx.Client]) -> None:
    """The last test of this server."""
    server = gateway.server.process
    assert server is not None
    family = children(server.pid)
    assert set(connections) < family
    os.kill(next(iter(connections)), signal.SIGKILL)
    assert server.wait(300) == 2
    assert "\neco: error: the server stopped: " in Path(gateway.server.log).read_text(errors="replace")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in family):
        time.sleep(0.2)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]

"""The admin address: readiness, and both metric registries."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial

import httpx
import pytest
from prometheus_client import REGISTRY, Counter
from starlette.responses import StreamingResponse

from gateway.admin import AdminServer, build_admin_app
from gateway.admin_key import AdminKeys
from gateway.front_ends import FrontEnd
from gateway.metrics import GuardMetrics
from guard import ProtectedPrompt, Verdict, Verdicts


class Admin:
    def __init__(self) -> None:
        self.metrics = GuardMetrics()
        self.error: Exception | None = None
        self.closed: str | None = None
        text = partial(FrontEnd().metrics_text, self.metrics)
        self.app = build_admin_app([], text, self.check_health, lambda: self.closed)

    async def check_health(self) -> None:
        if self.error is not None:
            raise self.error

    async def get(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return await client.get(path)


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def engine_counter() -> Iterator[Counter]:
    """vLLM counts in prometheus' default registry."""
    counter = Counter("vllm_like_requests", "As vLLM's own")
    yield counter
    REGISTRY.unregister(counter)


async def test_ready_while_engine_and_guard_answer(admin: Admin) -> None:
    answer = await admin.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})


@pytest.mark.parametrize("error", [RuntimeError("prompt text"), TimeoutError()])
async def test_not_ready_names_the_kind_of_error_only(admin: Admin, error: Exception) -> None:
    admin.error = error
    answer = await admin.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": type(error).__name__})


@pytest.mark.parametrize("reason", ["starting", "draining", "overloaded"])
async def test_who_is_not_ready_is_alive(admin: Admin, reason: str) -> None:
    assert (await admin.get("/readyz")).json() == {"ready": True}
    admin.closed = reason
    answer = await admin.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": reason})
    for path, word in (("/livez", "live"), ("/health", "ready")):
        answer = await admin.get(path)
        assert (answer.status_code, answer.json()) == (200, {word: True})


async def test_who_is_dead_is_not_ready(admin: Admin) -> None:
    admin.error = RuntimeError("prompt text")
    for path in ("/livez", "/readyz", "/health"):
        answer = await admin.get(path)
        assert (answer.status_code, answer.json()["reason"]) == (503, "RuntimeError")


async def test_metrics_are_the_guards_and_the_engines(admin: Admin, engine_counter: Counter) -> None:
    engine_counter.inc(3)
    verdicts = (Verdict("people", "corrupt", flagged=False, score=0.1), Verdict("books", "observe", True, 0.9))
    admin.metrics.decided(ProtectedPrompt([1, 2], verdicts=verdicts), 0.004)
    admin.metrics.refused_input("embeds")
    answer = await admin.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain")
    assert "vllm_like_requests_total 3.0" in lines
    assert 'eco_verdicts_total{action="corrupt",flagged="false",policy="people"} 1.0' in lines
    assert 'eco_verdicts_total{action="observe",flagged="true",policy="books"} 1.0' in lines
    assert 'eco_prompts_total{outcome="passed"} 1.0' in lines
    assert 'eco_refused_inputs_total{reason="embeds"} 1.0' in lines
    assert 'eco_guard_latency_seconds_bucket{le="0.005"} 1.0' in lines
    assert 'eco_guard_latency_seconds_bucket{le="0.003"} 0.0' in lines


async def test_of_thousands_of_policies_those_that_flag_are_counted(admin: Admin) -> None:
    passed = tuple(Verdict(f"p{number}", "corrupt", flagged=False, score=0.0) for number in range(1000))
    told = {3: Verdict("p3", "corrupt", flagged=True, score=0.9), 4: Verdict("p4", "corrupt", flagged=False, score=0.2)}
    admin.metrics.decided(ProtectedPrompt([1], verdicts=Verdicts(passed, told)), 0.004)
    lines = (await admin.get("/metrics")).text.splitlines()
    assert [line for line in lines if line.startswith("eco_verdicts_total")] == [
        'eco_verdicts_total{action="corrupt",flagged="true",policy="p3"} 1.0'
    ]
    assert 'eco_prompts_total{outcome="passed"} 1.0' in lines


async def test_the_guards_metrics_are_not_in_the_public_registry(admin: Admin) -> None:
    admin.metrics.refused_input("embeds")
    names = {metric.name for metric in REGISTRY.collect()}
    assert not {name for name in names if name.startswith("eco_")}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/models", "/studio/index.html", "/studio/page.py"])
async def test_nothing_else_is_served(admin: Admin, path: str) -> None:
    assert (await admin.get(path)).status_code == 404


async def test_a_stream_that_nobody_reads_does_not_hold_the_server(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admin._SHUTDOWN_S", 0.1)

    async def never_ends() -> AsyncIterator[str]:
        while True:
            yield "data: more\n\n"
            await asyncio.sleep(0.01)

    admin.app.add_api_route("/stream", lambda: StreamingResponse(never_ends()))
    server = AdminServer(admin.app, AdminKeys(None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        task = asyncio.create_task(server.serve_on(listening))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in await reader.readline()
        server.should_exit = True
        await asyncio.wait_for(task, 30)
        writer.close()

"""A crowd at the door: all of it is answered, a busy server is alive, SIGTERM cuts nobody off."""

import asyncio
import json
import random
import signal
import string
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from recorded_gateway import RecordingGateway, recording_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

#: `/health` is answered in this time on a slow machine that others use too.
SOON_S = 10.0
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def gateway(
    demo_build: "DemoBuild", demo_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordingGateway]:
    gateway = recording_gateway(
        demo_build.model,
        [demo_policy],
        tmp_path_factory.mktemp("load"),
        flags=("--max-model-len", "4096", "--shutdown-timeout", "120"),
        variables={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"},
    )
    with gateway.server:
        yield gateway


def rare_words(count: int, seed: int) -> str:
    """About 2.5 tokens each."""
    chooser = random.Random(seed)  # noqa: S311 - words, not secrets
    return " ".join("".join(chooser.choices(string.ascii_lowercase, k=3)) for _ in range(count))


class Client:
    def __init__(self, gateway: RecordingGateway, http: httpx.AsyncClient) -> None:
        self.gateway, self.http = gateway, http
        self.late = 0

    async def complete(self, prompt: Any, **options: Any) -> httpx.Response:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1, **options}
        return await self.http.post(f"{self.gateway.url}/v1/completions", json=body)

    async def insist(self, prompt: str) -> None:
        """Ask until it is answered, and wait as long as the server says."""
        for _ in range(100):
            answer = await self.complete(prompt)
            if answer.status_code == 200:
                return
            assert answer.status_code == 503, answer.text
            self.late += "retry-after" not in answer.headers
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        raise AssertionError("never answered")

    async def health(self) -> list[float]:
        """Seconds that `/health` took, asked for until this is cancelled."""
        took: list[float] = []
        try:
            while True:
                started = time.monotonic()
                answer = await self.http.get(f"{self.gateway.url}/health")
                assert answer.status_code == 200
                assert (await self.http.get(f"{self.gateway.admin_url}/livez")).status_code == 200
                took.append(time.monotonic() - started)
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            return took

    async def metric(self, name: str) -> float:
        text = (await self.http.get(f"{self.gateway.admin_url}/metrics")).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@asynccontextmanager
async def client_of(gateway: RecordingGateway) -> "AsyncIterator[Client]":
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http:
        yield Client(gateway, http)


async def bystanders(client: Client, crowd: "asyncio.Future[Any]") -> None:
    """Short questions, asked one after the other while the crowd is there, are answered.

    When, is the engine's to say: the guard has passed the crowd's prompts on within a second, and the engine serves
    who came first. That the short pass the guard first is shown in tests/unit/gateway/test_scheduling.py.
    """
    asked = 0
    await asyncio.sleep(0.5)
    while not crowd.done():
        answer = await client.complete(f"question {asked}: {rare_words(4, asked)}")
        assert answer.status_code == 200, answer.text
        asked += 1


async def test_a_crowd_of_long_prompts_is_answered_and_so_are_bystanders(gateway: RecordingGateway) -> None:
    async with client_of(gateway) as client:
        health = asyncio.ensure_future(client.health())
        crowd = asyncio.gather(*(client.insist(rare_words(1000, seed)) for seed in range(32)))
        await bystanders(client, crowd)
        await crowd
        health.cancel()
        assert max(await health) < SOON_S
        assert client.late <= 3  # a machine that others use may have stood still
        assert await client.metric("eco_guard_queue_prompts") == 0


async def test_one_request_that_lists_many_is_no_crowd(gateway: RecordingGateway) -> None:
    async with client_of(gateway) as client:
        health = asyncio.ensure_future(client.health())
        listing = asyncio.ensure_future(client.complete([rare_words(1000, seed) for seed in range(100, 164)]))
        await bystanders(client, listing)
        answer = await listing
        health.cancel()
        assert max(await health) < SOON_S
        assert answer.status_code in {200, 429}, answer.text
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            streamed = await client.complete([rare_words(1000, seed) for seed in range(100, 164)], stream=True)
            assert (streamed.status_code, "retry-after" in streamed.headers) == (429, True)


async def test_a_prompt_too_long_for_the_model_costs_no_guard_time(gateway: RecordingGateway) -> None:
    async with client_of(gateway) as client:
        pieces = await client.metric("eco_guard_piece_seconds_count")
        for prompt in ([5] * 5000, [5, 10**6]):
            assert (await client.complete(prompt)).status_code == 400
        assert await client.metric("eco_guard_piece_seconds_count") == pieces


async def test_sigterm_lets_a_stream_finish(gateway: RecordingGateway) -> None:
    process = gateway.server.process
    assert process is not None
    async with client_of(gateway) as client:
        assert (await client.http.get(f"{gateway.admin_url}/readyz")).status_code == 200
        body = {"model": "demo", "prompt": "tell me", "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with client.http.stream("POST", f"{gateway.url}/v1/completions", json=body) as stream:
            lines = stream.aiter_lines()
            events = [await anext(lines)]
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            ready = await client.http.get(f"{gateway.admin_url}/readyz")
            late = await client.complete("hello")
            alive = await client.http.get(f"{gateway.url}/health")
            events += [line async for line in lines if line]
    assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
    assert late.status_code == 503
    assert int(late.headers["retry-after"]) >= 1
    assert alive.status_code == 200
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert len(events) > 100
    assert process.wait(300) == 0

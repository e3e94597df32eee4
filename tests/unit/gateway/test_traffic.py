"""The front door: what belongs together, refusals with `Retry-After` in streams too, and draining."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gateway_fakes import until
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.traffic import PUBLIC_PATHS, Arrival, FrontDoor, Refusal, Traffic, current_arrival

FULL = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "full", 7)


class Server:
    """An application behind the door. What `check` does stands for the guard's answer."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.turned_away = 0
        self.arrivals: list[Arrival] = []
        self.check: Callable[[Arrival], Awaitable[None]] = Arrival.checked
        self.go_on = asyncio.Event()
        app = FastAPI()
        app.post("/stream")(self.stream)
        app.post("/whole")(self.whole)
        app.get("/health")(self.health)

        @app.middleware("http")
        async def between(request: Request, call_next: Any) -> Response:
            """vLLM has such ones: the application runs in a task of its own behind them."""
            response: Response = await call_next(request)
            return response

        self.app = FrontDoor(app, self.traffic, self._count)

    def _count(self) -> None:
        self.turned_away += 1

    async def _checked(self) -> bool:
        arrival = current_arrival()
        assert arrival is not None
        self.arrivals.append(arrival)
        await self.check(arrival)
        return arrival.refusal is None

    async def stream(self) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            if not await asyncio.create_task(self._checked()):
                yield "data: an error\n\n"
                return
            await self.go_on.wait()
            yield "data: one\n\n"
            yield "data: two\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def whole(self) -> Response:
        if not await self._checked():
            return JSONResponse({"error": "as vLLM says it"}, status_code=503)
        await self.go_on.wait()
        return JSONResponse({"fine": True})

    async def health(self) -> Response:
        assert current_arrival() is None
        return JSONResponse({})

    async def post(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request("GET" if path in PUBLIC_PATHS else "POST", path)


async def refuse(arrival: Arrival) -> None:
    arrival.refusal = FULL


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.mark.parametrize("path", ["/stream", "/whole"])
async def test_answers_pass_unchanged(server: Server, path: str) -> None:
    server.go_on.set()
    answer = await server.post(path)
    assert answer.status_code == 200
    assert answer.text == ("data: one\n\ndata: two\n\n" if path == "/stream" else '{"fine":true}')
    assert "retry-after" not in answer.headers


async def test_every_request_is_a_group_of_its_own(server: Server) -> None:
    server.go_on.set()
    await asyncio.gather(*(server.post(path) for path in ("/stream", "/whole", "/stream")))
    assert len({id(arrival.group) for arrival in server.arrivals}) == 3
    assert current_arrival() is None


async def test_a_refused_answer_says_when_to_come_again(server: Server) -> None:
    server.check = refuse
    answer = await server.post("/whole")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {"error": "as vLLM says it"}


async def test_a_refused_stream_is_a_status_and_no_event(server: Server) -> None:
    server.check = refuse
    answer = await server.post("/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {"error": {"message": "full", "type": "Service Unavailable", "param": None, "code": 503}}


async def test_a_stream_begins_when_its_prompt_is_checked(server: Server) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": [], "query_string": b""}
    task = asyncio.ensure_future(server.app(scope, receive, send))
    await until(lambda: bool(sent))
    assert sent == ["http.response.start"]
    server.go_on.set()
    await task
    assert sent.count("http.response.start") == 1


async def test_a_draining_server_answers_what_is_on_its_way_and_nothing_new(server: Server) -> None:
    running = asyncio.ensure_future(server.post("/stream"))
    await until(lambda: bool(server.arrivals))
    drained = asyncio.ensure_future(asyncio.to_thread(server.traffic.drain, 20.0))
    await until(lambda: server.traffic.is_draining)
    late = await server.post("/whole")
    assert late.status_code == 503
    assert int(late.headers["retry-after"]) > 0
    assert (await server.post("/health")).status_code == 200
    assert not drained.done()
    server.go_on.set()
    assert (await running).text.endswith("two\n\n")
    await drained
    assert server.turned_away == 1


async def test_draining_ends_with_its_time(server: Server) -> None:
    assert server.traffic.enter()
    await asyncio.to_thread(server.traffic.drain, 0.01)
    assert server.traffic.closed_because == "draining"


async def test_ready_when_the_application_has_started(server: Server) -> None:
    assert server.traffic.closed_because == "starting"
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            assert server.traffic.closed_because is None

    await server.app({"type": "lifespan", "state": {}}, receive, send)
    assert server.traffic.closed_because is None

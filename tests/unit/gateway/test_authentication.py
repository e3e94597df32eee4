"""With an API key, every route that is not public asks for it, whatever its prefix."""

from argparse import Namespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.authentication import authenticate_every_route
from gateway.traffic import PUBLIC_PATHS

KEYS = ["first-key", "second-key"]
GUARDED = [
    "/v1/completions",
    "/v1/models",
    "/inference/v1/generate",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/score",
    "/",
    "/healthy",
    "/health/deep",
    "/v1/health",
    "/docs/oauth2-redirect",
    "//health",
    "/HEALTH",
]


def app_with(api_key: list[str] | None, root_path: str = "") -> FastAPI:
    """Answers 200 on every path that gets through."""
    app = FastAPI(root_path=root_path, docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/{path:path}", methods=["GET", "POST", "OPTIONS"])
    async def reached(path: str, request: Request) -> JSONResponse:
        return JSONResponse({"reached": path})

    @app.websocket("/v1/realtime")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    authenticate_every_route(app, Namespace(api_key=api_key))
    return app


async def status(app: FastAPI, path: str, method: str = "GET", **headers: str) -> int:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.request(method, f"http://server{path}", headers=headers)).status_code


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
async def test_public_paths_are_open(path: str) -> None:
    app = app_with(KEYS)
    assert await status(app, path) == 200
    assert await status(app, path + "/") == 200


@pytest.mark.parametrize("path", GUARDED)
async def test_everything_else_needs_a_key(path: str) -> None:
    app = app_with(KEYS)
    for method in ("GET", "POST"):
        assert await status(app, path, method) == 401
        assert await status(app, path, method, Authorization="Bearer wrong") == 401
        assert await status(app, path, method, Authorization="Basic first-key") == 401
        assert await status(app, path, method, Authorization="first-key") == 401
        for key in KEYS:
            assert await status(app, path, method, Authorization=f"Bearer {key}") == 200


async def answer(app: FastAPI, path: str, headers: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        return await client.post(f"http://server{path}", headers=headers)


async def test_anthropics_clients_send_their_key_in_a_header_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    app = app_with(None)
    inner: list[str | None] = []

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Any:
        inner.append(request.headers.get("authorization"))
        return await call_next(request)

    authenticate_every_route(app, Namespace(api_key=KEYS))
    assert (await answer(app, "/v1/messages", {"x-api-key": KEYS[1]})).status_code == 200
    assert inner == [f"Bearer {KEYS[1]}"]  # vLLM's own check reads that alone
    assert (await answer(app, "/v1/messages", {"x-api-key": "wrong"})).status_code == 401
    assert (await answer(app, "/v1/messages", {"x-api-key": "sch\u00fcssel".encode("latin-1")})).status_code == 401
    both = {"x-api-key": KEYS[0], "Authorization": "Bearer wrong"}
    assert (await answer(app, "/v1/models", both)).status_code == 200


async def test_a_refusal_has_the_shape_of_the_api_that_was_asked() -> None:
    app = app_with(KEYS)
    error = (await answer(app, "/v1/chat/completions", {})).json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "invalid_request_error", None)
    assert "API key" in error["message"]
    refused = (await answer(app, "/v1/messages", {})).json()
    assert (refused["type"], refused["error"]["type"]) == ("error", "authentication_error")


async def test_preflight_requests_carry_no_key() -> None:
    assert await status(app_with(KEYS), "/v1/completions", "OPTIONS") == 200


async def test_the_root_path_of_a_proxy_is_not_part_of_the_path() -> None:
    app = app_with(KEYS, root_path="/proxy")
    assert await status(app, "/proxy/health") == 200
    assert await status(app, "/proxy/v1/models") == 401
    assert await status(app, "/proxyhealth") == 401


@pytest.mark.parametrize("keys", [None, [], [""]])
async def test_without_a_key_everything_is_open(keys: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert await status(app_with(keys), "/v1/models") == 200


async def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    app = app_with(None)
    assert await status(app, "/invocations", "POST") == 401
    assert await status(app, "/invocations", "POST", Authorization="Bearer from-environment") == 200


def test_websockets_need_the_key_too() -> None:
    from starlette.testclient import TestClient

    client = TestClient(app_with(KEYS))
    with pytest.raises(Exception) as caught, client.websocket_connect("/v1/realtime"):  # noqa: PT011
        pass
    assert getattr(caught.value, "status_code", None) == 401
    with (
        client.websocket_connect("/v1/realtime", headers={"Authorization": "Bearer first-key"}) as socket,
        pytest.raises(WebSocketDisconnect),
    ):
        socket.receive_text()

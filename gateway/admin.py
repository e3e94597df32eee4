"""The admin address: probes, metrics, policies in service, the studio. For operators, loopback by default."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from console.errors import EcoError
from gateway.admin_key import AdminDoor, AdminKeys
from gateway.admin_policies import refused
from gateway.studio.page import page_routes

#: What connections have to end in once the server stops.
_SHUTDOWN_S = 3


def build_admin_app(
    routes: Sequence[APIRouter],
    metrics_text: Callable[[], bytes],
    check_health: Callable[[], Awaitable[None]],
    unready_because: Callable[[], str | None],
) -> FastAPI:
    """Routes: `/livez`, `/readyz`, `/health`, `/metrics` (vLLM's and the guard's), `/studio/`, and `/v1` with its
    OpenAPI document.

    Args:
        routes: those of `/v1`.
        check_health: raises where the engine is dead or a thread of the guard dead or stuck.
        unready_because: a word for why no new requests should come now, None where they may.
    """
    app = FastAPI(title="ECO Gateway admin", version="1", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    for some in (*routes, page_routes()):
        app.include_router(some)
    for kind in (EcoError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refused)

    async def dead_because() -> str | None:
        try:
            await check_health()
        except Exception as error:  # noqa: BLE001 - whatever it is, the gateway does not answer
            return type(error).__name__
        return None

    def answer(name: str, reason: str | None) -> Response:
        if reason is None:
            return JSONResponse({name: True})
        return JSONResponse({name: False, "reason": reason}, status_code=503)

    @app.get("/livez")
    async def live() -> Response:
        return answer("live", await dead_because())

    @app.get("/readyz")
    async def ready() -> Response:
        return answer("ready", await dead_because() or unready_because())

    @app.get("/health")
    async def health() -> Response:
        return answer("ready", await dead_because())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(metrics_text(), media_type=CONTENT_TYPE_LATEST)

    return app


class _Quiet(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Probes and scrapes leave no lines: uvicorn asks the logger, which vLLM's server shares, not its own setting."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False


class AdminServer(uvicorn.Server):
    """Uvicorn beside vLLM's server in one loop: signals are the main server's."""

    def __init__(self, app: FastAPI, keys: AdminKeys) -> None:
        door = AdminDoor(app, keys)
        super().__init__(
            uvicorn.Config(
                door,
                http=_Quiet,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_SHUTDOWN_S,  # a stream that nobody reads would hold the server for ever
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve_on(self, sock: socket.socket) -> None:
        await self.serve(sockets=[sock])

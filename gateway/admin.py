"""The admin address: liveness, readiness, metrics, and the policies served. For operators, loopback by default."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from guard import Guard


def build_admin_app(
    guard: Guard,
    metrics_text: Callable[[], bytes],
    check_health: Callable[[], Awaitable[None]],
    unready_because: Callable[[], str | None],
) -> FastAPI:
    """Routes: `/livez`, `/readyz`, `/health`, `/metrics` (vLLM's and the guard's), `/policies`.

    Args:
        check_health: raises where the engine is dead or a thread of the guard dead or stuck.
        unready_because: a word for why no new requests should come now, None where they may.
    """
    app = FastAPI(title="ECO Gateway admin", docs_url=None, redoc_url=None, openapi_url=None)

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

    @app.get("/policies")
    async def policies() -> Response:
        listed = [
            {
                "name": policy.name,
                "version": policy.bundle.config.version,
                "digest": policy.bundle.digest,
                "path": str(policy.bundle.path),
                "action": policy.bundle.config.action,
                "answers": answers,
                "on_error": policy.bundle.config.on_error,
                "threshold": policy.bundle.config.classifier.threshold,
                "corruption": policy.bundle.config.corruption.model_dump(mode="json"),
                "model": policy.bundle.config.model.name,
            }
            for policy, answers in zip(guard.policies, guard.answer_modes, strict=True)
        ]
        return JSONResponse({"policies": listed})

    return app


class AdminServer(uvicorn.Server):
    """Uvicorn beside vLLM's server in one loop: signals are the main server's."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve_on(self, sock: socket.socket) -> None:
        await self.serve(sockets=[sock])

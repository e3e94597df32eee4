"""HTTP requests from their arrival to the end of their answer: what belongs together, how many are on their way,
when a refused one may come again, and that no new one starts while the server drains. No vLLM.
"""

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from gateway.scheduling import Group

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

#: Paths that answer without an API key and while the server drains: none reaches the engine or a prompt.
PUBLIC_PATHS = frozenset({"/health", "/ping", "/version", "/metrics", "/docs", "/redoc", "/openapi.json"})
#: When a client may come back to a server that stops: another will have taken its place.
_DRAINING_RETRY_S = 5


def path_of(scope: _Scope) -> str:
    """The path as the routes know it, without a proxy's prefix."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
    return path or "/"


@dataclass(eq=False, slots=True)
class Refusal:
    """Why a request is turned away before any work: an HTTP status, a message, and when to come again."""

    status: HTTPStatus
    message: str
    retry_after_s: int

    def response(self) -> JSONResponse:
        """As vLLM words its errors."""
        error = {"message": self.message, "type": self.status.phrase, "param": None, "code": self.status.value}
        return JSONResponse(
            {"error": error}, status_code=self.status.value, headers={"Retry-After": str(self.retry_after_s)}
        )


@dataclass(eq=False)
class Arrival:
    """One HTTP request. Its tasks find it by `current_arrival`; nothing that a client sends can name another's.

    Attributes:
        group: what its prompts share in the guard's queue.
        tenant: whose it is; None where that is not known.
        request_id: vLLM's id of its first prompt; before there is one, what its client calls it (`X-Request-Id`).
        refusal: set by who turns it away.
    """

    group: Group = field(default_factory=Group)
    tenant: str | None = None
    request_id: str | None = None
    refusal: Refusal | None = None
    _is_named: bool = False
    _checked: bool = False
    _release: Callable[[], Awaitable[None]] | None = None

    def named(self, request_id: str) -> None:
        """vLLM calls a prompt of it so."""
        if not self._is_named:
            self.request_id, self._is_named = request_id, True

    async def checked(self) -> None:
        """A prompt of it may be served: from now on the answer's status is what the server says it is."""
        self._checked = True
        if self._release is not None:
            await self._release()


_current: ContextVar[Arrival | None] = ContextVar("eco_arrival", default=None)


def current_arrival() -> Arrival | None:
    """The HTTP request that the running task works for."""
    return _current.get()


def current_tenant() -> str | None:
    """Whose that request is; None where that is not known."""
    return None if (arrival := _current.get()) is None else arrival.tenant


def current_request_id() -> str | None:
    """The id of that request, as far as it is known."""
    return None if (arrival := _current.get()) is None else arrival.request_id


class Traffic:
    """Whether the server starts, serves or drains, and how many requests are on their way. Safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests = 0
        self._is_open = False
        self.is_draining = False

    @property
    def closed_because(self) -> str | None:
        """`starting`, `draining`, or None while new requests are welcome."""
        if self.is_draining:
            return "draining"
        return None if self._is_open else "starting"

    def open(self) -> None:
        self._is_open = True

    def drain(self, timeout_s: float) -> None:
        """Let no new request start, and wait until those on their way are answered or the time is over.

        Blocking: not for the event loop that answers them.
        """
        with self._changed:
            self.is_draining = True
            self._changed.wait_for(lambda: self._requests == 0, timeout_s)

    def enter(self) -> bool:
        """Count a new request; False where none may start."""
        with self._changed:
            self._requests += not self.is_draining
            return not self.is_draining

    def leave(self) -> None:
        with self._changed:
            self._requests -= 1
            self._changed.notify_all()


class FrontDoor:
    """ASGI around the whole application.

    A stream's 200 is held back until a prompt of its request has been checked: a refusal for want of room is then a
    429 or 503 with `Retry-After` there too, which clients know to wait for, and not an event in a stream.

    Args:
        turned_away: called for each request that arrives while the server drains.
        tenant_of: whose a request is, by its headers.
    """

    def __init__(
        self,
        app: _App,
        traffic: Traffic,
        turned_away: Callable[[], None],
        tenant_of: Callable[[Headers], str | None] = lambda _: None,
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._turned_away = turned_away
        self._tenant_of = tenant_of

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._opening(send))
        elif scope["type"] != "http" or path_of(scope) in PUBLIC_PATHS:
            await self._app(scope, receive, send)
        elif self._traffic.enter():
            headers = Headers(scope=scope)
            arrival = Arrival(tenant=self._tenant_of(headers), request_id=headers.get("x-request-id"))
            token = _current.set(arrival)
            try:
                await self._app(scope, receive, _Answer(arrival, scope, receive, send))
            finally:
                _current.reset(token)
                self._traffic.leave()
        else:
            self._turned_away()
            refusal = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The server is shutting down.", _DRAINING_RETRY_S)
            await refusal.response()(scope, receive, send)

    def _opening(self, send: _Send) -> _Send:
        async def opening(message: _Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._traffic.open()
            await send(message)

        return opening


class _Answer:
    """`send` for one request: holds the answer's start back until it is known to be one, or a refusal."""

    def __init__(self, arrival: Arrival, scope: _Scope, receive: _Receive, send: _Send) -> None:
        self._arrival, self._scope, self._receive, self._send = arrival, scope, receive, send
        self._held: _Message | None = None
        self._is_replaced = False
        arrival._release = self._release

    async def __call__(self, message: _Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start" and not self._arrival._checked:
            self._held = message
            return
        refusal = self._arrival.refusal
        if self._held is not None and refusal is not None and self._held["status"] != refusal.status:
            self._is_replaced = True
            await refusal.response()(self._scope, self._receive, self._send)
            return
        await self._release()
        await self._send(message)

    async def _release(self) -> None:
        if (held := self._held) is None:
            return
        self._held = None
        if (refusal := self._arrival.refusal) is not None:
            held["headers"] = [*held.get("headers", ()), (b"retry-after", str(refusal.retry_after_s).encode())]
        await self._send(held)

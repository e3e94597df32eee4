"""A small OpenAI-compatible server on a local port, in threads, that answers by a test's rule and counts."""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

#: Status, body and headers; None: the connection is reset.
Answer = tuple[int, Any, dict[str, str]] | None
Rule = Callable[[str, dict[str, Any]], Answer]


def ok(body: Any) -> Answer:
    return 200, body, {}


def error(status: int, message: str, **headers: str) -> Answer:
    return status, {"error": {"message": message}}, {name.replace("_", "-"): value for name, value in headers.items()}


def texts(*contents: str | None) -> dict[str, Any]:
    """A chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": content}} for content in contents]}


def echo_of(body: dict[str, Any]) -> Answer:
    """A chat's last message in capitals, or a completion's prompt."""
    if "messages" in body:
        return ok(texts(*[body["messages"][-1]["content"].upper()] * body.get("n", 1)))
    return ok({"choices": [{"text": body["prompt"].upper()}] * body.get("n", 1)})


@dataclass
class ScriptedEndpoint:
    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "first"}, {"id": "second"}])
    listing: Answer = None
    """Given in place of the list of models."""
    rule: Rule = lambda path, body: echo_of(body)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    connections: set[tuple[str, int]] = field(default_factory=set)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        with self._lock:
            self.requests.append((path, body))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.rule(path, body)
        finally:
            with self._lock:
                self._now -= 1

    def bodies(self, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
        return [body for at, body in self.requests if at == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self._endpoint()
        server.keys.add(self.headers["Authorization"])
        listing = server.listing or ok({"data": server.models})
        self._send(listing if self.path == "/v1/models" else (404, {}, {}))

    def do_POST(self) -> None:
        server = self._endpoint()
        server.keys.add(self.headers["Authorization"])
        server.connections.add(self.client_address)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(server.answer(self.path, body))

    def _endpoint(self) -> ScriptedEndpoint:
        return cast("_Server", self.server).endpoint

    def _send(self, answer: Answer) -> None:
        if answer is None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        status, body, headers = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # at 5, simultaneous connections wait a second for TCP to try again
    daemon_threads = True
    endpoint: ScriptedEndpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that one side gave up is part of the tests; anything else is an error of theirs."""
        if not isinstance(sys.exception(), (ConnectionError, OSError, ValueError)):
            super().handle_error(request, client_address)


@contextmanager
def running() -> Iterator[ScriptedEndpoint]:
    http_server = _Server(("127.0.0.1", 0), _Handler)
    http_server.endpoint = ScriptedEndpoint(f"http://127.0.0.1:{http_server.server_address[1]}")
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield http_server.endpoint
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()

"""Receivers of OpenTelemetry traces, as collectors have them: OTLP over gRPC, by its own service, and over HTTP."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire, and the process that sent it."""

    span: Span
    process: str

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def said(self) -> dict[str, Any]:
        return said(self.span.attributes)


def said(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one) for one in attributes}


def _value(one: KeyValue) -> Any:
    kind = one.value.WhichOneof("value")
    return getattr(one.value, kind) if kind else None


@dataclass
class Receiver(TraceServiceServicer):
    """Keeps what it is sent."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        self.take(request)
        return ExportTraceServiceResponse()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            process = str(said(resource.resource.attributes).get("vllm.process_id"))
            spans = [Received(span, process) for scope in resource.scope_spans for span in scope.spans]
            with self._lock:
                self.spans += spans

    def wait_for(self, enough: Callable[[list[Received]], bool], timeout_s: float = 30.0) -> list[Received]:
        """What has come, once that is enough; processors send every five seconds."""
        deadline = time.monotonic() + timeout_s
        while not enough(list(self.spans)):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.1)
        return list(self.spans)


@contextmanager
def grpc_receiver() -> Iterator[Receiver]:
    """On loopback, at `url`."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_TraceServiceServicer_to_server(receiver, server)
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


@contextmanager
def http_receiver() -> Iterator[Receiver]:
    """On loopback, at `url`: Protobuf in the bodies of requests."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

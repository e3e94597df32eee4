"""What spans say of a request, and what they leave out. The exporter is OpenTelemetry's own, in memory."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from gateway_fakes import (
    BOS,
    FORBIDDEN,
    FakeClassifier,
    FakeEngine,
    FakePolicies,
    RecordingAudit,
    guard_with,
    late,
    policy,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import StatusCode
from otlp_receiver import grpc_receiver, http_receiver

from gateway.metrics import GuardMetrics
from gateway.protector import Protector
from gateway.tracing import UNTRACED, SpanTracing, Tracing
from gateway.traffic import Traffic

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
FLAGGED = [BOS, 5, FORBIDDEN, 6]


class Setup:
    """The wrapper with a real guard and its threads, a fake classifier and a fake engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, action: str = "corrupt", timeout_s: float = 10.0) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(ALWAYS_ON))
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing: Tracing = SpanTracing(late.VLLMClientError, provider.get_tracer("eco_gateway"))
        self.classifier, self.engine, metrics = FakeClassifier(), FakeEngine(), GuardMetrics()
        self.policies = FakePolicies(guard_with(monkeypatch, self.classifier, [policy(action=action)]))
        self.protector = Protector(metrics, timeout_s=timeout_s)
        self.protector.start()
        self.guarded = late.GuardedEngine(
            self.engine,
            self.protector,
            metrics,
            Traffic(),
            self.policies,
            RecordingAudit(),
            answers=None,
            tracing=self.tracing,
        )

    async def ask(self, ids: Sequence[int], **options: Any) -> list[Any]:
        prompt = late.tokens_input(list(ids), prompt="Who is Wendell Fairlocke?")
        return [one async for one in self.guarded.generate(prompt, late.SamplingParams(), "chatcmpl-1", **options)]

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Setup]]:
    made: list[Setup] = []

    def setup(**options: Any) -> Setup:
        made.append(Setup(monkeypatch, **options))
        return made[-1]

    yield setup
    for one in made:
        one.protector.stop()


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


async def test_a_flagged_prompt_has_a_span_for_each_thing_that_was_done(make: Callable[..., Setup]) -> None:
    setup = make()
    await setup.ask(FLAGGED, trace_headers=HEADERS)
    spans = setup.spans()
    assert set(spans) == {"eco_request", "eco_wait", "eco_classification", "eco_corruption"}
    request = spans["eco_request"]
    assert request.parent is not None
    assert (ids_of(request)[0], f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert said(request) == {
        "gen_ai.request.id": "chatcmpl-1",
        "gen_ai.usage.prompt_tokens": 4,
        "eco.outcome": "corrupted",
    }
    assert all(span.parent == request.context for span in spans.values() if span is not request)
    classified = said(spans["eco_classification"])
    assert classified.pop("eco.work_ms") > 0
    assert classified == {
        "eco.policies": 1,
        "eco.windows": 1,
        "eco.windows.encoder": 0,
        "eco.windows.over_budget": 0,
        "eco.flagged": True,
        "eco.flagged.policies": ("people",),
    }
    (event,) = spans["eco_classification"].events
    told = {"eco.policy": "people", "eco.policy.digest": "c" * 64, "eco.action": "corrupt", "eco.score": 1.0}
    assert (event.name, dict(event.attributes or {})) == ("flagged", told)
    assert said(spans["eco_corruption"])["eco.corrupted_tokens"] == 3


async def test_parts_follow_each_other_within_the_request(make: Callable[..., Setup]) -> None:
    setup = make()
    before = time.time_ns()
    await setup.ask(FLAGGED)
    spans = setup.spans()
    times = [
        at
        for name in ("eco_wait", "eco_classification", "eco_corruption")
        for at in (spans[name].start_time, spans[name].end_time)
    ]
    assert times == sorted(times, key=lambda at: at or 0)
    first, last = spans["eco_request"].start_time, spans["eco_request"].end_time
    assert first is not None
    assert last is not None
    assert before - 1_000_000 < first <= (times[0] or 0) + 1_000_000
    assert (times[-1] or 0) <= last + 1_000_000
    assert spans["eco_wait"].end_time == spans["eco_classification"].start_time


async def test_vllms_span_becomes_a_child_of_the_requests(make: Callable[..., Setup]) -> None:
    setup = make()
    await setup.ask([BOS, 5], trace_headers=HEADERS)
    request = setup.spans()["eco_request"]
    assert setup.engine.options == [
        {"trace_headers": {"traceparent": f"00-{TRACE}-{ids_of(request)[1]}-01", "tracestate": "vendor=1"}}
    ]
    assert said(request)["eco.outcome"] == "passed"
    assert "eco_corruption" not in setup.spans()


async def test_a_request_begins_where_vllms_does(make: Callable[..., Setup]) -> None:
    setup = make()
    prompt: Any = late.tokens_input([BOS, 5])
    prompt["arrival_time"] = 1_700_000_000.25
    async for _ in setup.guarded.generate(prompt, late.SamplingParams(), "r"):
        pass
    assert setup.spans()["eco_request"].start_time == int(1_700_000_000.25 * 1e9)  # as vLLM counts


async def test_each_request_without_headers_begins_a_trace(make: Callable[..., Setup]) -> None:
    setup = make()
    await asyncio.gather(setup.ask([BOS, 5]), setup.ask([BOS, 6]))
    requests = [span for span in setup.exporter.get_finished_spans() if span.name == "eco_request"]
    assert all(span.parent is None for span in requests)
    assert len({ids_of(span)[0] for span in requests}) == 2
    told = {options["trace_headers"]["traceparent"].split("-")[1] for options in setup.engine.options}
    assert told == {ids_of(span)[0] for span in requests}


async def test_what_the_client_does_not_sample_is_not_exported_and_vllm_is_told(make: Callable[..., Setup]) -> None:
    setup = make()
    await setup.ask(FLAGGED, trace_headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert setup.spans() == {}
    assert setup.engine.options[0]["trace_headers"]["traceparent"].startswith(f"00-{TRACE}-")
    assert setup.engine.options[0]["trace_headers"]["traceparent"].endswith("-00")


async def test_nothing_of_the_prompt_is_in_a_span(make: Callable[..., Setup]) -> None:
    setup = make()
    await setup.ask([BOS, 12345, FORBIDDEN], trace_headers=HEADERS)
    text = " ".join(span.to_json() for span in setup.exporter.get_finished_spans())
    assert "Wendell" not in text
    assert "12345" not in text


async def test_a_refused_request_is_no_failure(make: Callable[..., Setup]) -> None:
    setup = make(action="refuse")
    with pytest.raises(late.VLLMValidationError):
        await setup.ask(FLAGGED)
    request = setup.spans()["eco_request"]
    assert (said(request)["eco.outcome"], request.status.status_code) == ("refused", StatusCode.UNSET)


async def test_a_guard_that_fails_is_one(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.classifier.error = lambda ids: RuntimeError("Who is Wendell Fairlocke?")
    with pytest.raises(late.GracefulHTTPError):
        await setup.ask([BOS, 5])
    spans = setup.spans()
    assert said(spans["eco_request"])["eco.outcome"] == "rejected"
    assert spans["eco_request"].status.status_code == StatusCode.ERROR
    assert spans["eco_classification"].status.description == "RuntimeError"
    assert "Wendell" not in " ".join(span.to_json() for span in spans.values())


async def test_what_never_had_a_turn_has_waited(make: Callable[..., Setup]) -> None:
    setup = make(timeout_s=0.2)
    setup.classifier.gate.clear()
    first = asyncio.ensure_future(setup.ask([BOS, 5]))
    await asyncio.sleep(0.05)
    with pytest.raises(late.GracefulHTTPError):
        await setup.ask([BOS, 6])
    of_trace: dict[int, set[str]] = {}
    for span in setup.exporter.get_finished_spans():
        of_trace.setdefault(span.context.trace_id, set()).add(span.name)
    assert {"eco_wait", "eco_request"} in of_trace.values()
    setup.classifier.gate.set()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_client_that_leaves_is_told_apart(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.classifier.gate.clear()
    asking = asyncio.ensure_future(setup.ask([BOS, 5]))
    await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    setup.classifier.gate.set()
    request = setup.spans()["eco_request"]
    assert (said(request)["eco.outcome"], request.status.status_code) == ("left", StatusCode.UNSET)


async def test_an_engine_that_fails_is_not_the_guards_outcome(make: Callable[..., Setup]) -> None:
    setup = make()

    def dies(prompt: Any, request_id: str) -> list[Any]:
        raise RuntimeError("dead")

    setup.engine.answers = dies
    with pytest.raises(RuntimeError):
        await setup.ask([BOS, 5])
    request = setup.spans()["eco_request"]
    assert (said(request)["eco.outcome"], said(request)["error.type"]) == ("failed", "RuntimeError")
    assert request.status.status_code == StatusCode.ERROR


def test_the_answer_guard_is_one_span_however_often_it_looks(make: Callable[..., Setup]) -> None:
    setup = make()
    with setup.tracing.request("r", None, tokens=3, tenant="acme") as trace:
        trace.answered("passed")  # of an answer that was not looked at
        for _ in range(3):
            trace.asked(0.002)
        trace.hit("people", "restart", 0.98765)
        trace.answered("restarted")
    spans = setup.spans()
    assert set(spans) == {"eco_request", "eco_answer_guard"}
    answers = spans["eco_answer_guard"]
    assert said(answers) == {"eco.checks": 3, "eco.checks_ms": 6.0}
    assert [(event.name, dict(event.attributes or {})) for event in answers.events] == [
        ("hit", {"eco.policy": "people", "eco.action": "restart", "eco.score": 0.9877}),
        ("answer", {"eco.outcome": "restarted"}),
    ]
    assert said(spans["eco_request"])["eco.tenant"] == "acme"


def test_without_an_endpoint_nothing_is_made() -> None:
    with Tracing().request("r", HEADERS, tokens=3, tenant=None) as trace:
        assert trace is UNTRACED
        assert trace.headers is None


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_spans_arrive_by_both_protocols_that_vllm_knows(
    protocol: str, make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.tracing.otel import get_span_exporter

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    setup = make()
    with grpc_receiver() if protocol == "grpc" else http_receiver() as receiver:
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(get_span_exporter(receiver.url)))
        setup.guarded._tracing = SpanTracing(late.VLLMClientError, provider.get_tracer("eco_gateway"))
        await setup.ask(FLAGGED, trace_headers=HEADERS)
        await asyncio.get_running_loop().run_in_executor(None, provider.shutdown)
        assert {span.name for span in receiver.spans} == {
            "eco_request",
            "eco_wait",
            "eco_classification",
            "eco_corruption",
        }
        assert {span.trace for span in receiver.spans} == {TRACE}


async def test_a_receiver_that_hangs_holds_no_request(make: Callable[..., Setup]) -> None:
    released = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            released.wait(60)
            return SpanExportResult.FAILURE

    setup = make()
    provider = TracerProvider()
    processor = BatchSpanProcessor(Hanging(), max_queue_size=16, max_export_batch_size=16)
    provider.add_span_processor(processor)
    setup.guarded._tracing = SpanTracing(late.VLLMClientError, provider.get_tracer("eco_gateway"))
    for _ in range(50):  # 150 spans, where 16 may wait
        assert await asyncio.wait_for(setup.ask([BOS, 5]), 20) == ["one", "two", "three"]
    assert not released.is_set()
    released.set()
    processor.shutdown()

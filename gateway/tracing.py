"""Spans of what the guard does with a request, in the trace that vLLM's own span is in (`--otlp-traces-endpoint`).

    the client's span, where its request has a W3C `traceparent`
      eco_request              from the prompt's arrival, as vLLM tells it, to the end of its answer
        eco_wait               until the guard's first turn with it
        eco_classification     from there to the verdicts, the turns of other prompts included
        eco_corruption         of the rows of a flagged prompt
        llm_request            vLLM's, one for each request to the engine: a restarted answer has two. It begins with
                               the arrival too, so the guard's time is part of its first token's
        eco_answer_guard       from the first time that the guard is asked about the answer to its end

They go where vLLM's go, through its tracer provider: in batches, by a thread. Where the receiver does not keep up
spans are dropped, and no request waits. What a client wrote or was told is in none of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from guard import ProtectedPrompt, Verdict

#: Policies of a prompt that are told of: a trace is no place for thousands.
_TOLD_POLICIES = 16
_LONGEST, _DECIMALS = 256, 4
_PROPAGATOR = TraceContextTextMapPropagator()


class RequestTrace:
    """What happens to one request. Of an untraced one, as here, nothing is kept."""

    headers: Mapping[str, str] | None = None
    """W3C headers for vLLM, by which its span becomes a child of the request's; None: those that came."""

    def worked(self, first_turn: float | None, last_turn: float, work_us: int) -> None:
        """The guard has worked on the prompt: from when to when (`time.monotonic`), and for how long of that."""

    def decided(self, prompt: ProtectedPrompt, digests: Callable[[], Mapping[str, str]]) -> None:
        """What becomes of the prompt. `digests` gives those of the policies, by name."""

    def rejected(self, cause: BaseException | None) -> None:
        """The guard failed, and the prompt is not served."""

    def outcome(self, outcome: str) -> None:
        """What becomes of the request, in a word; the first that is said holds."""

    def asked(self, seconds: float) -> None:
        """The guard was asked about the answer, and took so long."""

    def hit(self, policy: str, action: str, score: float | None) -> None:
        """The answer gave away what a policy forgets."""

    def answered(self, outcome: str) -> None:
        """What becomes of one of the answers."""


UNTRACED = RequestTrace()


class Tracing:
    """Makes the traces of requests. Here, without `--otlp-traces-endpoint`, of none."""

    def request(
        self,
        request_id: str,
        headers: Mapping[str, str] | None,
        *,
        tokens: int,
        tenant: str | None,
        arrival_s: float | None = None,
    ) -> AbstractContextManager[RequestTrace]:
        """Around all that is done for a request.

        Args:
            headers: W3C headers that came with it.
            tokens: of the prompt.
            arrival_s: when it came, in seconds since the epoch; by default now.
        """
        del request_id, headers, tokens, tenant, arrival_s
        return _NONE


_NONE = nullcontext(UNTRACED)


class SpanTracing(Tracing):
    """Spans by OpenTelemetry.

    Args:
        client_errors: what is raised where the client is at fault, and nothing has failed.
        tracer: by default of the provider that vLLM has set up in this process.
    """

    def __init__(self, client_errors: type[Exception], tracer: Tracer | None = None) -> None:
        self._client_errors = client_errors
        self._tracer = tracer or trace.get_tracer("eco_gateway")

    @contextmanager
    def request(
        self,
        request_id: str,
        headers: Mapping[str, str] | None,
        *,
        tokens: int,
        tenant: str | None,
        arrival_s: float | None = None,
    ) -> Iterator[RequestTrace]:
        said: dict[str, Any] = {"gen_ai.request.id": request_id[:_LONGEST], "gen_ai.usage.prompt_tokens": tokens}
        if tenant is not None:
            said["eco.tenant"] = tenant[:_LONGEST]
        # Not as the current span: vLLM's task that reads outputs starts in the first request's context, and every later
        # request without headers would be counted to that one.
        context = _PROPAGATOR.extract(headers or {}, Context())
        arrival_ns = None if arrival_s is None else int(arrival_s * 1e9)
        span = self._tracer.start_span("eco_request", context, SpanKind.SERVER, said, start_time=arrival_ns)
        traced = _Traced(self._tracer, span)
        try:
            yield traced
        except Exception as error:
            at_fault = not isinstance(error, self._client_errors) and getattr(error, "http_status", 500) >= 500
            traced.raised(error, at_fault=at_fault)
            raise
        except BaseException:  # the client has left, or the server stops
            traced.outcome("left")
            raise
        finally:
            traced.end()


class _Traced(RequestTrace):
    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._begun = time.monotonic()
        self._first_turn: float | None = None
        self._last_turn = 0.0
        self._work_us = 0
        self._outcome: str | None = None
        self._answers: Span | None = None
        self._asked, self._asked_s = 0, 0.0
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, self._context)
        self.headers = headers

    def worked(self, first_turn: float | None, last_turn: float, work_us: int) -> None:
        self._first_turn, self._last_turn, self._work_us = first_turn, last_turn, work_us

    def decided(self, prompt: ProtectedPrompt, digests: Callable[[], Mapping[str, str]]) -> None:
        self.outcome(prompt.outcome)
        if not self._span.is_recording():
            return
        flagged = prompt.flagged
        failed = any(verdict.failed for verdict in flagged)
        # What is done where classification fails may be done after the last turn, by another thread.
        ended = time.monotonic() if failed or not self._last_turn else self._last_turn
        corrupted_at = ended - prompt.corruption_s
        span = self._classified(corrupted_at)
        if span is not None:
            span.set_attributes(_said(prompt, flagged))
            digest = digests() if flagged else {}
            for verdict in flagged[:_TOLD_POLICIES]:
                span.add_event("flagged", _told(verdict, digest.get(verdict.policy)), self._ns(corrupted_at))
            span.end(self._ns(corrupted_at))
        if prompt.mask is not None:
            self._part("eco_corruption", corrupted_at, {"eco.corrupted_tokens": sum(prompt.mask)}).end(self._ns(ended))

    def rejected(self, cause: BaseException | None) -> None:
        self.outcome("rejected")
        span = self._classified(now := time.monotonic())
        if span is not None:
            span.set_status(StatusCode.ERROR, type(cause).__name__)
            span.end(self._ns(now))

    def outcome(self, outcome: str) -> None:
        self._outcome = self._outcome or outcome

    def raised(self, error: Exception, *, at_fault: bool) -> None:
        """Before anything was decided, by checks of vLLM's or ours; or after, by the engine or on the answer's way."""
        self._span.set_attribute("error.type", type(error).__name__)
        if at_fault:
            self._span.set_status(StatusCode.ERROR, type(error).__name__)
        if self._outcome in {None, "passed", "corrupted"}:
            self._outcome = "failed" if at_fault else "invalid"

    def asked(self, seconds: float) -> None:
        if self._answers is None:
            self._answers = self._part("eco_answer_guard", time.monotonic() - seconds)
        self._asked += 1
        self._asked_s += seconds

    def hit(self, policy: str, action: str, score: float | None) -> None:
        if self._answers is not None:
            said = {"eco.policy": policy, "eco.action": action}
            self._answers.add_event("hit", said if score is None else {**said, "eco.score": round(score, _DECIMALS)})

    def answered(self, outcome: str) -> None:
        if self._answers is not None:
            self._answers.add_event("answer", {"eco.outcome": outcome})

    def end(self) -> None:
        if self._answers is not None:
            self._answers.set_attributes({"eco.checks": self._asked, "eco.checks_ms": _ms(self._asked_s)})
            self._answers.end()
        if self._outcome is not None:
            self._span.set_attribute("eco.outcome", self._outcome)
        self._span.end()

    def _classified(self, until: float) -> Span | None:
        """The span of a classification, after that of the wait for it; None where its turn never came."""
        first = self._first_turn
        self._part("eco_wait", self._begun).end(self._ns(until if first is None else first))
        if first is None:
            return None
        return self._part("eco_classification", first, {"eco.work_ms": _ms(self._work_us / 1e6)})

    def _part(self, name: str, start: float, attributes: Mapping[str, Any] | None = None) -> Span:
        return self._tracer.start_span(name, self._context, attributes=attributes, start_time=self._ns(start))

    def _ns(self, monotonic: float) -> int:
        """Nanoseconds since the epoch."""
        return self._epoch_ns + round(monotonic * 1e9)


def _said(prompt: ProtectedPrompt, flagged: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "eco.policies": len(prompt.verdicts),
        "eco.windows": prompt.windows,
        "eco.windows.encoder": prompt.encoded,
        "eco.windows.over_budget": prompt.over_budget,
        "eco.flagged": bool(flagged),
        "eco.flagged.policies": [verdict.policy for verdict in flagged[:_TOLD_POLICIES]],
    }


def _told(verdict: Verdict, digest: str | None) -> dict[str, Any]:
    said = {"eco.policy": verdict.policy, "eco.policy.digest": digest or "", "eco.action": verdict.action}
    return said if verdict.failed else {**said, "eco.score": round(verdict.score, _DECIMALS)}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)

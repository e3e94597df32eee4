"""Verdict metrics, in a registry of their own: they are for operators and never on the public port."""

import functools
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard import ProtectedPrompt

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class GuardMetrics:
    """Counters and histograms of what the guard decided. Labels never carry prompt text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self.registry)
        decisions = "Prompts by policy, its action, and whether it flagged them"
        self._verdicts = counter("eco_verdicts", decisions, ["policy", "action", "flagged"])
        self._prompts = counter(
            "eco_prompts", "Prompts by what became of them: passed, corrupted, refused, rejected", ["outcome"]
        )
        failures = "Failures inside the guard by kind; such a prompt is rejected or corrupted, never passed"
        self._errors = counter("eco_guard_errors", failures, ["kind"])
        refusals = "Requests refused by reason: their shape, engine control, or the operator's policy"
        self._refused_inputs = counter("eco_refused_inputs", refusals, ["reason"])
        self._latency = Histogram(
            "eco_guard_latency_seconds",
            "Time from the rendered prompt to the verdict, waiting for the encoder included",
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._ready = Gauge("eco_ready", "1 while the guard answers", registry=self.registry)

    def decided(self, prompt: ProtectedPrompt, seconds: float) -> None:
        self._latency.observe(seconds)
        for verdict in prompt.verdicts:
            self._verdicts.labels(verdict.policy, verdict.action, str(verdict.flagged).lower()).inc()
        if any(verdict.failed for verdict in prompt.verdicts):
            self._errors.labels("classification_corrupted").inc()
        outcome = "refused" if prompt.refused_by else "passed" if prompt.mask is None else "corrupted"
        self._prompts.labels(outcome).inc()

    def rejected(self, error: Exception, seconds: float) -> None:
        self._latency.observe(seconds)
        self._errors.labels(type(error).__name__).inc()
        self._prompts.labels("rejected").inc()

    def refused_input(self, reason: str) -> None:
        self._refused_inputs.labels(reason).inc()

    def ready(self, healthy: Callable[[], bool]) -> None:
        """Take the gauge from `healthy` at every scrape."""
        self._ready.set_function(lambda: float(healthy()))

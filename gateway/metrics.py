"""Verdict metrics, in a registry of their own: they are for operators and never on the public port."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.tenants import TenantLabels
from guard import PolicyBundle, ProtectedPrompt, Verdicts
from guard.bundle import PolicyConfig

#: With more policies, prompts that a policy passed are not counted for it: they are all the others of `eco_prompts`.
_COUNTED_POLICIES = 256
_PIECE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Acting(Protocol):
    """A policy in force."""

    @property
    def bundle(self) -> PolicyBundle: ...
    @property
    def config(self) -> PolicyConfig:
        """As it acts."""
        ...


class _InForce(Protocol):
    """The policies in force."""

    @property
    def wanted(self) -> tuple[_Acting, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def since(self) -> float: ...


class _PoliciesCollector(Collector):
    """What is in force at the moment of a scrape: of that nothing can be added up."""

    def __init__(self) -> None:
        self.in_force: Callable[[], _InForce] | None = None

    def collect(self) -> Iterator[Metric]:
        if self.in_force is None:
            return
        now = self.in_force()
        yield GaugeMetricFamily("eco_policies", "Policies in force", float(len(now.wanted)))
        last = "When the set of policies in force last changed, in seconds since the epoch"
        yield GaugeMetricFamily("eco_policy_last_activation_timestamp_seconds", last, now.since)
        digest = "1; its label tells sets of policies apart: replicas that do the same have the same"
        yield _one("eco_policy_set_info", digest, {"digest": now.digest[:16]})
        if len(now.wanted) > _COUNTED_POLICIES:
            return
        info = GaugeMetricFamily(
            "eco_policy_info", "1 for each policy in force", labels=["policy", "version", "digest", "action", "answers"]
        )
        for acting in now.wanted:
            config = acting.config
            info.add_metric(
                [config.name, config.version, acting.bundle.digest[:16], config.action, config.answer_mode], 1.0
            )
        yield info


def _one(name: str, documentation: str, labels: Mapping[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


class GuardMetrics:
    """Counters and histograms of what the guard decided. Labels never carry prompt text.

    Args:
        tenants: which of them are counted by name.
    """

    def __init__(self, tenants: TenantLabels | None = None) -> None:
        self.tenants = tenants or TenantLabels()
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
        windows = "Windows of prompts by what read them: screen, encoder, over_budget (in doubt, counted as flagged)"
        self._windows = counter("eco_guard_windows", windows, ["read"])
        self._latency = Histogram(
            "eco_guard_latency_seconds",
            "Time from the rendered prompt to the verdict, waiting for the encoder included",
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._pieces = Histogram(
            "eco_guard_piece_seconds",
            "Time of one piece of work: nothing else gets a turn on that thread meanwhile",
            buckets=_PIECE_BUCKETS_S,
            registry=self.registry,
        )
        gauge = functools.partial(Gauge, registry=self.registry)
        self._queue_prompts = gauge("eco_guard_queue_prompts", "Prompts that wait for their verdict")
        self._backlog = gauge("eco_guard_backlog_seconds", "Estimated time until all of them have it")
        self._turned_away = counter(
            "eco_guard_turned_away", "Prompts refused before any work, by reason: queue, list, draining", ["reason"]
        )
        self._dropped = counter(
            "eco_guard_dropped", "Work given up, by reason: its client left, or it was late", ["reason"]
        )
        outcomes = "Answers by what became of them: passed, restarted, ended, failed"
        self._answers = counter("eco_answers", outcomes, ["outcome"])
        hits = "Answers that gave away what a policy forgets, by what came of it: restart, end, observe"
        self._answer_hits = counter("eco_answer_hits", hits, ["policy", "action"])
        self._answer_looks = counter("eco_answer_looks", "Looks at answers under way")
        self._ready = gauge("eco_ready", "1 while the guard answers")
        changes = "Changes of policies in force, by outcome: activated, refused (what could not act)"
        self._activations = counter("eco_policy_activations", changes, ["outcome"])
        lost = "Lines of the audit log that were lost, by reason: queue, disk"
        self._audit_lost = counter("eco_audit_lost", lost, ["reason"])
        outcomes = "Prompts by tenant and what became of them: passed, corrupted, refused, rejected, turned_away"
        self._tenant_prompts = counter("eco_tenant_prompts", outcomes, ["tenant", "outcome"])
        flagged = "Prompts that a policy flagged, by tenant, those of observing policies included"
        self._tenant_flagged = counter("eco_tenant_flagged", flagged, ["tenant"])
        self._tenant_tokens = counter("eco_tenant_prompt_tokens", "Tokens of prompts, by tenant", ["tenant"])
        hits = "Answers that gave away what a policy forgets, by tenant and what came of it: restart, end, observe"
        self._tenant_hits = counter("eco_tenant_answer_hits", hits, ["tenant", "action"])
        self.policies = CollectorRegistry()
        """Of the policies in force: never summed over front ends, which all have the same."""
        self._policies = _PoliciesCollector()
        self.policies.register(self._policies)

    def decided(self, prompt: ProtectedPrompt, seconds: float) -> None:
        self._latency.observe(seconds)
        told = prompt.verdicts
        if isinstance(told, Verdicts) and len(told) > _COUNTED_POLICIES:
            told = prompt.flagged
        for verdict in told:
            self._verdicts.labels(verdict.policy, verdict.action, str(verdict.flagged).lower()).inc()
        if any(verdict.failed for verdict in told):
            self._errors.labels("classification_corrupted").inc()
        self._windows.labels("encoder").inc(prompt.encoded)
        self._windows.labels("over_budget").inc(prompt.over_budget)
        self._windows.labels("screen").inc(prompt.windows - prompt.encoded - prompt.over_budget)
        self._prompts.labels(prompt.outcome).inc()

    def rejected(self, error: Exception, seconds: float) -> None:
        self._latency.observe(seconds)
        self._errors.labels(type(error).__name__).inc()
        self._prompts.labels("rejected").inc()

    def prompt_of(self, tenant: str | None, outcome: str, tokens: int, *, flagged: bool = False) -> None:
        label = self.tenants.of(tenant)
        self._tenant_prompts.labels(label, outcome).inc()
        self._tenant_tokens.labels(label).inc(tokens)
        self._tenant_flagged.labels(label).inc(flagged)

    def answer_hit(self, policy: str, action: str, tenant: str | None = None) -> None:
        self._answer_hits.labels(policy, action).inc()
        self._tenant_hits.labels(self.tenants.of(tenant), action).inc()

    def answered(self, outcome: str, looks: int) -> None:
        self._answers.labels(outcome).inc()
        self._answer_looks.inc(looks)

    def answer_failed(self, error: Exception) -> None:
        self._errors.labels(type(error).__name__).inc()

    def refused_input(self, reason: str) -> None:
        self._refused_inputs.labels(reason).inc()

    def turned_away(self, reason: str) -> None:
        self._turned_away.labels(reason).inc()

    def dropped(self, reason: str) -> None:
        self._dropped.labels(reason).inc()

    def worked_piece(self, seconds: float) -> None:
        self._pieces.observe(seconds)

    def in_force(self, policies: Callable[[], _InForce]) -> None:
        """Take the policies in force from this at every scrape."""
        self._policies.in_force = policies

    def policies_activated(self, count: int) -> None:
        self._activations.labels("activated").inc(count)

    def policy_refused(self) -> None:
        self._activations.labels("refused").inc()

    def audit_lost(self, reason: str) -> None:
        self._audit_lost.labels(reason).inc()

    def queue(self, prompts: Callable[[], int], backlog_s: Callable[[], float]) -> None:
        """Take the gauges from these at every scrape."""
        self._queue_prompts.set_function(lambda: float(prompts()))
        self._backlog.set_function(backlog_s)

    def ready(self, healthy: Callable[[], bool]) -> None:
        """Take the gauge from `healthy` at every scrape."""
        self._ready.set_function(lambda: float(healthy()))

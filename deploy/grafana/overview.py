"""The overview: is the guard well, what does it do, what does it cost."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    PER_SECOND,
    PERCENT,
    PLAIN,
    SECONDS,
    chosen,
    heat,
    lines,
    mean,
    new,
    number,
    or_zero,
    quantile,
    query,
    rate,
    rows,
    states,
)

_PROMPTS, _LATENCY, _TTFT = "eco_prompts_total", "eco_guard_latency_seconds", "vllm:time_to_first_token_seconds"
_FLAGGED = 'outcome=~"corrupted|refused"'
_FLAGGED_BY_POLICY = rate("eco_verdicts_total", 'flagged="true"', by="policy")
_READY = {"0": ("not ready", "red"), "1": ("ready", "green")}


def overview() -> Dashboard:
    made = new("overview", "ECO Gateway: overview", "What the guard decides, what that costs, and whether it is well.")
    for part in (_now, _traffic, _latency, _errors, _work, _replicas):
        made = part(made)
    return made


def _share(*matchers: str) -> str:
    return f"{or_zero(rate(_PROMPTS, *matchers))} / {rate(_PROMPTS)}"


def _now(made: Dashboard) -> Dashboard:
    panels = (
        number("Prompts", "Prompts that reached the guard.", PER_SECOND, rate(_PROMPTS)),
        number(
            "Flagged",
            "Share of prompts that were corrupted or refused. Policies in observe mode do not count here.",
            PERCENT,
            _share(_FLAGGED),
        ),
        number(
            "Added latency, 99 %",
            "From the rendered prompt to the verdict, waiting included. It is part of vLLM's time to first token.",
            SECONDS,
            quantile(0.99, _LATENCY),
            (None, "green"),
            (0.25, "orange"),
            (1, "red"),
        ),
        number(
            "Rejected",
            "Share of prompts answered with an error because the guard failed or was too slow. Should be zero.",
            PERCENT,
            _share('outcome="rejected"'),
            (None, "green"),
            (0.0001, "orange"),
            (0.01, "red"),
        ),
        number(
            "Ready",
            "Share of the gateways whose guard answers.",
            PERCENT,
            f"avg ({chosen('eco_ready')})",
            (None, "red"),
            (1, "green"),
        ),
        number(
            "Policy sets in force",
            "Different sets of active policies among these gateways. More than one: replicas answer differently.",
            PLAIN,
            f"count (count by (digest) ({chosen('eco_policy_set_info')}))",
            (None, "green"),
            (2, "red"),
        ),
    )
    for panel in panels:
        made = made.with_panel(panel)
    return made


def _traffic(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Traffic"))
        .with_panel(
            lines(
                "Prompts by outcome",
                "passed: reached the model as they came. corrupted, refused: flagged by a policy. rejected: the guard "
                "failed or was too slow; the client got a 503.",
                PER_SECOND,
                query(rate(_PROMPTS, by="outcome"), "{{outcome}}"),
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Flagged share",
                "Share of prompts that were corrupted or refused. A jump is an attack, new traffic or a new policy; a "
                "fall to zero is a policy that is gone.",
                PERCENT,
                query(_share(_FLAGGED), "flagged"),
            )
        )
        .with_panel(
            lines(
                "Flagged, by policy",
                "Prompts that each policy flagged, observing ones included; the ten that flag most.",
                PER_SECOND,
                query(f"topk(10, {_FLAGGED_BY_POLICY})", "{{policy}}"),
            )
        )
        .with_panel(
            lines(
                "Answers by outcome",
                "restarted, ended: the answer gave something away and was mended. failed: it could not be checked.",
                PER_SECOND,
                query(rate("eco_answers_total", by="outcome"), "{{outcome}}"),
                stacked=True,
            )
        )
    )


def _latency(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Added latency"))
        .with_panel(
            lines(
                "Guard latency",
                "From the rendered prompt to the verdict, waiting included.",
                SECONDS,
                *(query(quantile(share, _LATENCY), f"{share:.0%}") for share in (0.5, 0.95, 0.99)),
            )
        )
        .with_panel(
            lines(
                "Beside vLLM's time to first token",
                "Means. vLLM's clock starts before the guard's, so the guard's time is part of the first token's.",
                SECONDS,
                query(mean(_TTFT), "time to first token"),
                query(mean(_LATENCY), "guard"),
            )
        )
        .with_panel(heat("How guard latency is spread", "Prompts by time to their verdict.", SECONDS, _LATENCY))
        .with_panel(
            lines(
                "Guard's share of the time to first token",
                "The guard's mean over that of the first token. Refused prompts have no first token.",
                PERCENT,
                query(f"({mean(_LATENCY)}) / ({mean(_TTFT)})", "share"),
            )
        )
    )


def _errors(made: Dashboard) -> Dashboard:
    causes = (
        ("Guard errors", "eco_guard_errors_total", "kind", "Failures inside the guard; none lets a prompt pass."),
        (
            "Turned away",
            "eco_guard_turned_away_total",
            "reason",
            "Refused before any work. queue: too much waits. list: one request lists too many. draining: it stops.",
        ),
        (
            "Given up",
            "eco_guard_dropped_total",
            "reason",
            "left: the client had gone. late: no verdict in time, so on_error decided.",
        ),
        (
            "Refused inputs",
            "eco_refused_inputs_total",
            "reason",
            "Requests refused for what they asked for: clients' doing, not the guard's.",
        ),
    )
    made = made.with_row(Row("Errors"))
    for title, metric, label, description in causes:
        made = made.with_panel(
            lines(title, description, PER_SECOND, query(rate(metric, by=label), f"{{{{{label}}}}}"), width=6)
        )
    return made


def _work(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("The guard's work"))
        .with_panel(
            lines(
                "Prompts that wait",
                "For their verdict, by gateway. Not counted where a gateway has several front ends.",
                PLAIN,
                query(f"sum by (instance) ({chosen('eco_guard_queue_prompts')})", "{{instance}}"),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Backlog",
                "Estimated time until all of them have it. Newcomers are refused where it is above "
                "--eco-guard-queue-ms.",
                SECONDS,
                query(f"max by (instance) ({chosen('eco_guard_backlog_seconds')})", "{{instance}}"),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Windows by what read them",
                "screen: decided by hashed words alone. encoder: read. over_budget: in doubt beyond a prompt's share "
                "of the encoder, counted as flagged.",
                "cps",
                query(rate("eco_guard_windows_total", by="read"), "{{read}}"),
                width=6,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "One piece of work, 99 %",
                "Nothing else gets a turn on a guard's thread meanwhile.",
                SECONDS,
                query(quantile(0.99, "eco_guard_piece_seconds"), "piece of work"),
                width=6,
            )
        )
    )


def _replicas(made: Dashboard) -> Dashboard:
    digests = f"max by (namespace, instance, digest) ({chosen('eco_policy_set_info')})"
    labels = {"namespace": "Namespace", "instance": "Gateway", "digest": "Digest of its active policies"}
    return (
        made.with_row(Row("Replicas and policies"))
        .with_panel(
            states(
                "Readiness",
                "Whether each gateway's guard answers.",
                f"max by (instance) ({chosen('eco_ready')})",
                "{{instance}}",
                _READY,
            )
        )
        .with_panel(
            lines(
                "Activations",
                "Policies activated or refused in the five minutes before; a refused one leaves the old one serving.",
                PLAIN,
                query(
                    f"sum by (outcome) (increase({chosen('eco_policy_activations_total')}[5m]))",
                    "{{outcome}}",
                ),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Audit lines lost",
                "That could not be written in the five minutes before. Should be empty.",
                PLAIN,
                query(f"sum by (reason) (increase({chosen('eco_audit_lost_total')}[5m]))", "{{reason}}"),
                width=6,
            )
        )
        .with_panel(rows("Set of policies", "All gateways behind one address must have the same.", digests, labels))
    )

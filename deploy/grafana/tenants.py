"""What each tenant asks and what becomes of it, for the tenants chosen."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    PER_SECOND,
    PERCENT,
    PLAIN,
    TOKENS_PER_SECOND,
    choice,
    chosen,
    lines,
    new,
    number,
    or_zero,
    query,
    rate,
    rows,
)

_OF = 'tenant=~"$tenant"'
_PROMPTS, _FLAGGED, _HITS = "eco_tenant_prompts_total", "eco_tenant_flagged_total", "eco_tenant_answer_hits_total"
_UNSERVED = 'outcome=~"rejected|turned_away"'


def tenants() -> Dashboard:
    made = new(
        "tenants", "ECO Gateway: tenants", "What each tenant asks, what is flagged of it, and what is not served."
    )
    made = made.with_variable(choice("tenant", "Tenant", chosen(_PROMPTS)))
    return _of_each(_now(made))


def _now(made: Dashboard) -> Dashboard:
    unserved = f"{or_zero(rate(_PROMPTS, _OF, _UNSERVED))} / {rate(_PROMPTS, _OF)}"
    return (
        made.with_panel(
            number(
                "Tenants",
                "With series of their own: those that the operator named, and other and unknown for the rest.",
                PLAIN,
                f"count (count by (tenant) ({chosen(_PROMPTS, _OF)}))",
                width=6,
            )
        )
        .with_panel(number("Prompts", "Of these tenants.", PER_SECOND, rate(_PROMPTS, _OF), width=6))
        .with_panel(
            number(
                "Flagged",
                "Share of their prompts that a policy flagged, observing policies included.",
                PERCENT,
                f"{rate(_FLAGGED, _OF)} / {rate(_PROMPTS, _OF)}",
                width=6,
            )
        )
        .with_panel(
            number(
                "Not served",
                "Share of their prompts that were turned away or rejected: the server's doing, not theirs.",
                PERCENT,
                unserved,
                (None, "green"),
                (0.001, "orange"),
                (0.05, "red"),
                width=6,
            )
        )
    )


def _of_each(made: Dashboard) -> Dashboard:
    by = "{{tenant}}"
    total = f"sum by (tenant, outcome) (increase({chosen(_PROMPTS, _OF)}[$__range]))"
    return (
        made.with_row(Row("By tenant"))
        .with_panel(
            lines(
                "Prompts by tenant",
                "other: tenants that nobody named. unknown: requests that say no tenant.",
                PER_SECOND,
                query(rate(_PROMPTS, _OF, by="tenant"), by),
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Flagged share by tenant",
                "Of a tenant's prompts. One far above the others asks for what is to be forgotten.",
                PERCENT,
                query(f"{rate(_FLAGGED, _OF, by='tenant')} / {rate(_PROMPTS, _OF, by='tenant')}", by),
            )
        )
        .with_panel(
            lines(
                "Prompt tokens by tenant",
                "The guard's work and the engine's grow with them.",
                TOKENS_PER_SECOND,
                query(rate("eco_tenant_prompt_tokens_total", _OF, by="tenant"), by),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Not served, by tenant",
                "Prompts that were turned away, because too much waited, or rejected, because the guard failed.",
                PER_SECOND,
                query(rate(_PROMPTS, _OF, _UNSERVED, by="tenant, outcome"), "{{tenant}}, {{outcome}}"),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Answers that gave something away, by tenant",
                "By what came of it. restart: it went on from a corrupted prompt. end: it ended. observe: it left.",
                PER_SECOND,
                query(rate(_HITS, _OF, by="tenant, action"), "{{tenant}}, {{action}}"),
                width=8,
            )
        )
        .with_panel(
            rows(
                "Prompts in this time",
                "By tenant and what became of them.",
                total,
                {"tenant": "Tenant", "outcome": "Outcome", "Value": "Prompts"},
            )
        )
    )

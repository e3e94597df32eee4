"""What each policy does, for the policies chosen."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    CHOSEN,
    PER_SECOND,
    PERCENT,
    PLAIN,
    SECONDS,
    choice,
    chosen,
    lines,
    new,
    number,
    query,
    rate,
    rows,
)

_OF = 'policy=~"$policy"'
_VERDICTS = "eco_verdicts_total"
_KNOWN = '{__name__=~"eco_policy_info|eco_verdicts_total"'


def policy() -> Dashboard:
    made = new(
        "policy", "ECO Gateway: policies", "Which policies are in force, what they flag, what answers gave away."
    )
    made = made.with_variable(choice("policy", "Policy", f"{_KNOWN}, {CHOSEN}}}"))
    return _verdicts(_in_force(made))


def _in_force(made: Dashboard) -> Dashboard:
    columns = {
        "policy": "Policy",
        "version": "Version",
        "action": "Action",
        "answers": "Answers",
        "digest": "Digest",
        "Value": "Gateways",
    }
    series = f"count by (policy, version, digest, action, answers) ({chosen('eco_policy_info', _OF)})"
    return (
        made.with_panel(
            number("Active policies", "The most of one gateway.", PLAIN, f"max ({chosen('eco_policies')})", width=6)
        )
        .with_panel(
            number(
                "Time since the last activation",
                "Of any policy, on any of these gateways.",
                SECONDS,
                f"time() - max ({chosen('eco_policy_last_activation_timestamp_seconds')})",
                width=6,
            )
        )
        .with_panel(
            number("Flagged", "Verdicts of these policies that flagged a prompt.", PER_SECOND, _flagged(""), width=6)
        )
        .with_panel(
            number(
                "Answers caught",
                "Answers that gave away what these policies forget, whatever came of it.",
                PER_SECOND,
                f"({rate('eco_answer_hits_total', _OF)} or vector(0))",
                width=6,
            )
        )
        .with_panel(
            rows(
                "In force",
                "Two rows of one policy are two versions or settings of it: replicas disagree. Up to 256 are listed.",
                series,
                columns,
            )
        )
    )


def _flagged(by: str) -> str:
    return rate(_VERDICTS, _OF, 'flagged="true"', by=by)


def _verdicts(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Verdicts"))
        .with_panel(
            lines(
                "Flagged prompts",
                "By policy and what it does with them; observe counts and lets pass.",
                PER_SECOND,
                query(_flagged("policy, action"), "{{policy}}, {{action}}"),
            )
        )
        .with_panel(
            lines(
                "Flagged share",
                "Of the prompts a policy judged. Empty with more than 256 policies: what passes is not counted then.",
                PERCENT,
                query(f"{_flagged('policy')} / {rate(_VERDICTS, _OF, by='policy')}", "{{policy}}"),
            )
        )
        .with_panel(
            lines(
                "Flagged share, by gateway",
                "Replicas behind one address see like traffic, so they should agree.",
                PERCENT,
                query(f"{_flagged('instance')} / {rate(_VERDICTS, _OF, by='instance')}", "{{instance}}"),
            )
        )
        .with_panel(
            lines(
                "Answers that gave something away",
                "By what came of it. restart: it went on from a corrupted prompt. end: it ended. observe: it left.",
                PER_SECOND,
                query(rate("eco_answer_hits_total", _OF, by="policy, action"), "{{policy}}, {{action}}"),
            )
        )
    )

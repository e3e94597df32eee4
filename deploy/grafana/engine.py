"""vLLM's engine behind the guard, from vLLM's own metrics."""

from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    PER_SECOND,
    PERCENT,
    PLAIN,
    SECONDS,
    TOKENS_PER_SECOND,
    choice,
    chosen,
    heat,
    lines,
    new,
    quantile,
    query,
    rate,
)

_OF = 'model_name=~"$model_name"'


def engine() -> Dashboard:
    made = new("engine", "ECO Gateway: engine", "Load, latency and cache of the vLLM engines behind the guard.")
    made = made.with_variable(choice("model_name", "Model", chosen("vllm:num_requests_running")))
    return _memory(_latency(_load(made)))


def _quantiles(title: str, description: str, histogram: str) -> timeseries.Panel:
    shares = (0.5, 0.95, 0.99)
    return lines(
        title,
        description,
        SECONDS,
        *(query(quantile(share, histogram, _OF), f"{share:.0%}") for share in shares),
    )


def _load(made: Dashboard) -> Dashboard:
    requests = (
        query(f"sum ({chosen('vllm:num_requests_running', _OF)})", "running"),
        query(f"sum ({chosen('vllm:num_requests_waiting', _OF)})", "waiting"),
    )
    return (
        made.with_panel(
            lines(
                "Requests",
                "In the engines, passed on by the guard. waiting: no room in a batch yet.",
                PLAIN,
                *requests,
            )
        )
        .with_panel(
            lines(
                "Tokens",
                "Prompt tokens read and answer tokens made.",
                TOKENS_PER_SECOND,
                query(rate("vllm:prompt_tokens_total", _OF), "prompt"),
                query(rate("vllm:generation_tokens_total", _OF), "answer"),
            )
        )
        .with_panel(
            lines(
                "Finished requests",
                "By how they ended. A restarted answer is two requests here, the first of them aborted.",
                PER_SECOND,
                query(rate("vllm:request_success_total", _OF, by="finished_reason"), "{{finished_reason}}"),
                stacked=True,
            )
        )
        .with_panel(heat("Prompt lengths", "Requests by prompt tokens.", "none", "vllm:request_prompt_tokens", _OF))
    )


def _latency(made: Dashboard) -> Dashboard:
    return (
        made.with_row(Row("Latency"))
        .with_panel(
            _quantiles(
                "Time to first token",
                "From the request's arrival, the guard's time included.",
                "vllm:time_to_first_token_seconds",
            )
        )
        .with_panel(
            _quantiles("Time between tokens", "Of one request, in the engine.", "vllm:inter_token_latency_seconds")
        )
        .with_panel(
            _quantiles("Time to the last token", "From the request's arrival.", "vllm:e2e_request_latency_seconds")
        )
        .with_panel(
            lines(
                "Where requests spend their time",
                "95 % of requests spend no more than this in each phase.",
                SECONDS,
                *(
                    query(quantile(0.95, f"vllm:request_{phase}_time_seconds", _OF), phase)
                    for phase in ("queue", "prefill", "decode")
                ),
            )
        )
    )


def _memory(made: Dashboard) -> Dashboard:
    hits = f"{rate('vllm:prefix_cache_hits_total', _OF)} / {rate('vllm:prefix_cache_queries_total', _OF)}"
    return (
        made.with_row(Row("Memory"))
        .with_panel(
            lines(
                "KV cache in use",
                "Near 100 % requests wait or are preempted.",
                PERCENT,
                query(
                    f"max by (instance, engine) ({chosen('vllm:kv_cache_usage_perc', _OF)})",
                    "{{instance}}, engine {{engine}}",
                ),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Prefix cache hits",
                "Share of prompt tokens found in the cache. Masked prompts are cached apart from unmasked ones.",
                PERCENT,
                query(hits, "hits"),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Preemptions",
                "Requests put back for want of KV cache; each is computed again.",
                PER_SECOND,
                query(rate("vllm:num_preemptions_total", _OF), "preemptions"),
                width=8,
            )
        )
    )

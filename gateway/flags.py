"""What of `vllm serve` a guarded server allows.

Three kinds: refused (it would go around the guard), refused unless the operator insists with
`--eco-allow-untested` (no test covers it), and set by `eco serve` itself.
"""

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway import LaunchError

#: Variables that open another way to the model, with what they open.
_REFUSED_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "development routes reach the engine without the guard",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "clients could load adapters at run time",
    "VLLM_USE_RUST_FRONTEND": "vLLM's Rust front end does not pass through the guard",
    "VLLM_ENABLE_COHERE_API": "no test covers its routes",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers would be logged in clear",
}


#: What vLLM exports traces by, and the variable that says which; it does not look at the one for all signals.
_TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_TRACES_PROTOCOLS = ("grpc", "http/protobuf")
#: Flags that would go around the guard, with how.
_REFUSED_FLAGS = {
    "--grpc": "the gRPC front end does not pass through it",
    "--grpc-port": "the gRPC front end does not pass through it",
    "--data-parallel-multi-port-external-lb": "its supervisor starts unguarded servers",
    **dict.fromkeys(
        ("--data-parallel-hybrid-lb", "--data-parallel-start-rank"),
        "no test covers front ends that share a rank's engines with other nodes'",
    ),
    "--enable-elastic-ep": "its engines restart without the guard's settings",
    "--enable-prompt-embeds": "clients' embeddings cannot be classified; the guard turns the feature on inside",
    "--enable-mm-embeds": "clients' embeddings cannot be classified",
    "--worker-extension-cls": "the guard's own extension is loaded there",
    "--weight-transfer-config": "weights could change under a policy",
    "--enable-fault-tolerance": "its routes control the engine",
    "--trust-request-chat-template": "a client's template decides what counts as content",
    "--return-sampling-mask": "it tells which tokens might have come instead",
    **dict.fromkeys(("--skip-tokenizer-init", "--tokens-only"), "the guard reads prompts through the tokenizer"),
    "--enable-trace-replay": "a client would dictate the answer, and read off how likely the model finds it",
    "--kv-transfer-config": "external KV caches may key on token ids, which are the same under any mask",
    "--kv-events-config": "prompts' token ids would be published in clear",
    "--enable-log-requests": "prompts would be logged in clear",
}
#: What to do in place of a refused flag; for all others it is to be removed.
_REPLICAS = "start an eco serve on each, with one secret file, behind a load balancer; see docs/scaling.md"
_INSTEAD = dict.fromkeys(
    (
        "--data-parallel-multi-port-external-lb",
        "--data-parallel-hybrid-lb",
        "--data-parallel-start-rank",
        "--data-parallel-size-local",
        "--data-parallel-backend",
    ),
    _REPLICAS,
)
#: Flags that no test covers with a guard, with what they turn on: at any value, and above 1.
_UNTESTED_FLAGS = {
    **dict.fromkeys(
        ("--speculative-config", "--spec-method", "--spec-model", "--spec-tokens"),
        "speculative decoding with masked prompts",
    ),
    "--kv-offloading-size": "KV offloading with masked prompts",
    "--ec-transfer-config": "encoder transfer",
    **dict.fromkeys(
        ("--data-parallel-external-lb", "--data-parallel-rank"),
        "a server that is one of several data-parallel ranks",
    ),
}
_UNTESTED_SIZES = {
    "--decode-context-parallel-size": "context parallelism",
    "--prefill-context-parallel-size": "context parallelism",
}


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Raise `LaunchError` where a variable would open a way around the guard. Fast: call before importing vLLM."""
    for name, reason in _REFUSED_VARIABLES.items():
        if environ.get(name, "0").strip().lower() not in {"", "0", "false"}:
            raise LaunchError(f"{name} is set: {reason}; unset it")


def check_flags(
    args: Namespace, *, allow_untested: bool, allow_multimodal: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """Raise `LaunchError` for flags that a guarded server cannot honour.

    Args:
        args: parsed by vLLM's own parser.
    """

    def value(flag: str) -> Any:
        return getattr(args, flag.removeprefix("--").replace("-", "_"))

    def is_given(flag: str) -> bool:
        return value(flag) is not None and value(flag) is not False and value(flag) != ""

    targets = lora_targets(args)
    refused = [(flag, reason) for flag, reason in _REFUSED_FLAGS.items() if is_given(flag)]
    if args.headless and (args.nnodes < 2 or args.node_rank < 1):
        refused.append(("--headless", "only for a node of workers alone: --nnodes above 1, --node-rank above 0"))
    if args.node_rank > 0 and not args.headless:
        refused.append(("--node-rank", "a further node has workers alone: add --headless, and leave policies out"))
    if args.headless and args.api_server_count:
        refused.append(("--api-server-count", "a node of workers alone has no front ends"))
    if args.nnodes > 1 and args.data_parallel_size > 1:
        refused.append(("--nnodes", "with data parallelism other nodes would have engines, and no test covers them"))
    if args.api_server_count is not None and args.api_server_count < 1 and not args.headless:
        refused.append(("--api-server-count", "without a front end there is none to guard"))
    if args.data_parallel_size_local not in (None, args.data_parallel_size):
        reason = "other nodes' engines would be started headless, without the guard's settings"
        refused.append(("--data-parallel-size-local", reason))
    if args.data_parallel_backend == "ray":
        refused.append(
            ("--data-parallel-backend", "Ray starts engines on other nodes, and vLLM's has none on a CPU to test")
        )
    if any("embed" in name for name in targets):
        reason = "an adapter on the embedding layer breaks mixed prompts in vLLM"
        refused.append(("--lora-target-modules or --lora-modules", reason))
    if args.enable_lora and not targets:
        reason = "the adapters' layers must be known: name local --lora-modules, or --lora-target-modules"
        refused.append(("--enable-lora", reason))
    for flag, reason in refused:
        raise LaunchError(f"{flag}: not available with a guard ({reason}); {_INSTEAD.get(flag, 'remove it')}")
    protocol = environ.get(_TRACES_PROTOCOL, "grpc")
    if args.otlp_traces_endpoint is not None and protocol not in _TRACES_PROTOCOLS:
        raise LaunchError(
            f"{_TRACES_PROTOCOL}: {protocol!r} is not {' or '.join(_TRACES_PROTOCOLS)}, which vLLM exports by"
        )
    if allow_untested:
        return
    untested = [(flag, what) for flag, what in _UNTESTED_FLAGS.items() if is_given(flag)]
    untested += [(flag, what) for flag, what in _UNTESTED_SIZES.items() if (value(flag) or 1) > 1]
    # Without the variable vLLM takes the V2 runner wherever Triton works; a V1 engine on a CPU fails the self-test.
    if args.pipeline_parallel_size > 1 and environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0":
        untested.append(("--pipeline-parallel-size", "pipeline parallelism on the V1 model runner"))
    if args.distributed_executor_backend == "ray":
        untested.append(("--distributed-executor-backend", "Ray, which vLLM does not have on a CPU,"))
    if getattr(args.profiler_config, "profiler", None):
        untested.append(("--profiler-config", "profiling a guarded server"))
    if allow_multimodal:
        untested.append(("--eco-allow-multimodal", "multimodal input with a real model"))
    for flag, what in untested:
        raise LaunchError(f"{flag}: {what} is not covered by a test; remove it, or insist with --eco-allow-untested")


def lora_targets(args: Namespace) -> list[str]:
    """The layers that LoRA may change: `--lora-target-modules`, or those that the static adapters name.

    Without such a list vLLM wraps every layer it can, the embedding among them, and then an engine step with a
    masked prompt fails in the embedding's LoRA layer.
    """
    if args.lora_target_modules:
        return list(args.lora_target_modules)
    targets: set[str] = set()
    for adapter in args.lora_modules or []:
        try:
            config = json.loads((Path(adapter.path) / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # not a local adapter
        named = config.get("target_modules") or []
        if isinstance(named, str):  # "all-linear", or a pattern over layer names
            named = []
        targets.update(map(str, (*named, *(config.get("modules_to_save") or []))))
    return sorted(targets)

"""What of `vllm serve` a guarded server allows.

Three kinds: refused (it would go around the guard), refused unless the operator insists with
`--eco-allow-untested` (no test covers it), and set by `eco serve` itself.
"""

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import LaunchError

__all__ = ["check_environment", "check_flags", "lora_targets"]

#: Variables that open another way to the model, with what they open.
_REFUSED_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "development routes reach the engine without the guard",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "clients could load adapters at run time",
    "VLLM_USE_RUST_FRONTEND": "vLLM's Rust front end does not pass through the guard",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers would be logged in clear",
}


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Raise `LaunchError` where a variable would open a way around the guard. Fast: call before importing vLLM."""
    for name, reason in _REFUSED_VARIABLES.items():
        if environ.get(name, "0").strip().lower() not in {"", "0", "false"}:
            raise LaunchError(f"{name} is set: {reason}; unset it")


def check_flags(args: Namespace, *, allow_untested: bool, allow_multimodal: bool) -> None:
    """Raise `LaunchError` for flags that a guarded server cannot honour.

    Args:
        args: parsed by vLLM's own parser.
    """
    for flag, reason in _refused(args):
        raise LaunchError(f"{flag}: not available with a guard ({reason}); remove it")
    if allow_untested:
        return
    for flag, reason in _untested(args, allow_multimodal):
        raise LaunchError(f"{flag}: {reason}; remove it, or insist with --eco-allow-untested")


def _refused(args: Namespace) -> list[tuple[str, str]]:
    checks: list[tuple[object, str, str]] = [
        (args.grpc, "--grpc", "the gRPC front end does not pass through it"),
        (args.grpc_port is not None, "--grpc-port", "the gRPC front end does not pass through it"),
        (args.headless, "--headless", "it starts no front end to guard"),
        (args.api_server_count not in (None, 1), "--api-server-count", "the guard lives in one front-end process"),
        (
            args.data_parallel_multi_port_external_lb,
            "--data-parallel-multi-port-external-lb",
            "its supervisor starts unguarded servers",
        ),
        (args.data_parallel_hybrid_lb, "--data-parallel-hybrid-lb", "it starts several front ends"),
        (args.enable_elastic_ep, "--enable-elastic-ep", "its engines restart without the guard's settings"),
        (
            args.enable_prompt_embeds,
            "--enable-prompt-embeds",
            "clients' embeddings cannot be classified; the guard turns the feature on inside",
        ),
        (args.enable_mm_embeds, "--enable-mm-embeds", "clients' embeddings cannot be classified"),
        (args.worker_extension_cls, "--worker-extension-cls", "the guard's own extension is loaded there"),
        (args.weight_transfer_config, "--weight-transfer-config", "weights could change under a policy"),
        (args.enable_fault_tolerance, "--enable-fault-tolerance", "its routes control the engine"),
        (
            args.trust_request_chat_template,
            "--trust-request-chat-template",
            "a client's template decides what counts as content",
        ),
        (args.skip_tokenizer_init, "--skip-tokenizer-init", "the guard reads prompts through the tokenizer"),
        (
            args.kv_transfer_config is not None,
            "--kv-transfer-config",
            "external KV caches may key on token ids, which are the same under any mask",
        ),
        (args.kv_events_config is not None, "--kv-events-config", "prompts' token ids would be published in clear"),
        (args.enable_log_requests, "--enable-log-requests", "prompts would be logged in clear"),
        (
            any("embed" in name for name in lora_targets(args)),
            "--lora-target-modules or --lora-modules",
            "an adapter on the embedding layer breaks mixed prompts in vLLM",
        ),
        (
            args.enable_lora and not lora_targets(args),
            "--enable-lora",
            "the adapters' layers must be known: name local --lora-modules, or --lora-target-modules",
        ),
    ]
    return [(flag, reason) for applies, flag, reason in checks if applies]


def _untested(args: Namespace, allow_multimodal: bool) -> list[tuple[str, str]]:
    speculative = "speculative decoding with masked prompts"
    checks: list[tuple[object, str, str]] = [
        (args.speculative_config is not None, "--speculative-config", speculative),
        (args.spec_method is not None, "--spec-method", speculative),
        (args.spec_model is not None, "--spec-model", speculative),
        (args.spec_tokens is not None, "--spec-tokens", speculative),
        ((args.data_parallel_size or 1) > 1, "--data-parallel-size", "data parallelism"),
        ((args.pipeline_parallel_size or 1) > 1, "--pipeline-parallel-size", "pipeline parallelism"),
        ((args.nnodes or 1) > 1, "--nnodes", "serving from several nodes"),
        ((args.decode_context_parallel_size or 1) > 1, "--decode-context-parallel-size", "context parallelism"),
        ((args.prefill_context_parallel_size or 1) > 1, "--prefill-context-parallel-size", "context parallelism"),
        (args.kv_offloading_size, "--kv-offloading-size", "KV offloading with masked prompts"),
        (args.ec_transfer_config is not None, "--ec-transfer-config", "encoder transfer"),
        (getattr(args.profiler_config, "profiler", None), "--profiler-config", "profiling a guarded server"),
        (allow_multimodal, "--eco-allow-multimodal", "multimodal input with a real model"),
    ]
    return [(flag, f"{what} is not covered by a test") for applies, flag, what in checks if applies]


def lora_targets(args: Namespace) -> list[str]:
    """The layers that LoRA may change: `--lora-target-modules`, or those that the static adapters name.

    Without such a list vLLM wraps every layer it can, the embedding among them, and then an engine step with a
    masked prompt fails in the embedding's LoRA layer.
    """
    if args.lora_target_modules:
        return list(args.lora_target_modules)
    found = [_adapter_targets(Path(adapter.path)) for adapter in args.lora_modules or []]
    return sorted({name for names in found for name in names})


def _adapter_targets(folder: Path) -> list[str]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # not a local adapter
    targets = config.get("target_modules") or []
    if isinstance(targets, str):  # "all-linear", or a pattern over layer names
        targets = []
    return [str(name) for name in (*targets, *(config.get("modules_to_save") or []))]

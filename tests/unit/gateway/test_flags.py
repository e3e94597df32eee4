"""Flags and variables a guarded server refuses, parsed by vLLM's own parser so that the names are real."""

import functools
import json
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from gateway import LaunchError
from gateway.flags import check_environment, check_flags, lora_targets
from gateway.front_ends import count_of
from gateway.launch import SHUTDOWN_TIMEOUT_S, _parse, keep_alive_s

KV_TRANSFER = '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'
TWO_ENGINES = ("--data-parallel-size", "2")
TWO_SERVERS = (*TWO_ENGINES, "--data-parallel-size-local", "2")

REFUSED = {
    "--grpc": ("--grpc",),
    "--headless": ("--headless",),
    "--nnodes": ("--nnodes", "2", *TWO_ENGINES),
    "--api-server-count": ("--api-server-count", "0"),
    "--data-parallel-start-rank": ("--data-parallel-start-rank", "0", *TWO_SERVERS),
    "--data-parallel-size-local": ("--data-parallel-size-local", "1", *TWO_ENGINES),
    "--data-parallel-backend": ("--data-parallel-backend", "ray", *TWO_ENGINES),
    "--data-parallel-multi-port-external-lb": ("--data-parallel-multi-port-external-lb", *TWO_SERVERS),
    "--data-parallel-hybrid-lb": ("--data-parallel-hybrid-lb", *TWO_SERVERS),
    "--enable-elastic-ep": ("--enable-elastic-ep",),
    "--enable-prompt-embeds": ("--enable-prompt-embeds",),
    "--worker-extension-cls": ("--worker-extension-cls", "some.Class"),
    "--weight-transfer-config": ("--weight-transfer-config", '{"backend": "nccl"}'),
    "--enable-fault-tolerance": ("--enable-fault-tolerance",),
    "--trust-request-chat-template": ("--trust-request-chat-template",),
    "--kv-transfer-config": ("--kv-transfer-config", KV_TRANSFER),
    "--enable-log-requests": ("--enable-log-requests",),
    "--enable-mm-embeds": ("--enable-mm-embeds",),
    "--skip-tokenizer-init": ("--skip-tokenizer-init",),
    "--tokens-only": ("--tokens-only",),
    "--enable-trace-replay": ("--enable-trace-replay",),
    "--return-sampling-mask": ("--return-sampling-mask",),
    "--kv-events-config": ("--kv-events-config", '{"enable_kv_cache_events": true}'),
}

UNTESTED = {
    "--speculative-config": ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'),
    "--spec-method": ("--spec-method", "ngram"),
    "--spec-model": ("--spec-model", "draft"),
    "--spec-tokens": ("--spec-tokens", "3"),
    "--data-parallel-external-lb": ("--data-parallel-external-lb", *TWO_ENGINES),
    "--data-parallel-rank": ("--data-parallel-rank", "0", *TWO_ENGINES),
    "--distributed-executor-backend": ("--distributed-executor-backend", "ray"),
    "--kv-offloading-size": ("--kv-offloading-size", "1"),
    "--decode-context-parallel-size": ("--decode-context-parallel-size", "2"),
    "--prefill-context-parallel-size": ("--prefill-context-parallel-size", "2"),
    "--ec-transfer-config": ("--ec-transfer-config", '{"ec_connector": "c", "ec_role": "ec_both"}'),
    "--profiler-config": ("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp/profile"}'),
}


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, True),
        ({"target_modules": "all-linear"}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
    ],
)
def test_adapters_on_the_embedding_or_of_unknown_layers_are_refused(
    config: dict[str, object], refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    args = _parse(["model", "--enable-lora", "--lora-modules", f"extra={tmp_path}"])
    if not refused:
        check(args)
        assert lora_targets(args) == ["q_proj", "v_proj"]
        return
    with pytest.raises(LaunchError, match="lora"):
        check(args, allow_untested=True)


def test_the_operators_lora_layers_count() -> None:
    args = _parse(["model", "--enable-lora", "--lora-target-modules", "q_proj", "o_proj"])
    check(args)
    assert lora_targets(args) == ["q_proj", "o_proj"]
    with pytest.raises(LaunchError, match="--lora-target-modules"):
        check(_parse(["model", "--enable-lora", "--lora-target-modules", "embed_tokens"]))


@pytest.mark.parametrize("arguments", [["--port", "9"], ["--dtype=float32"]])
def test_a_server_without_a_model_is_refused(arguments: list[str]) -> None:
    with pytest.raises(LaunchError, match="MODEL is missing"):
        _parse(arguments)


def test_a_model_may_be_named_by_flag() -> None:
    assert _parse(["--model", "some/model"]).model == "some/model"


def check(args: Namespace, *, allow_untested: bool = False, allow_multimodal: bool = False) -> None:
    check_flags(args, allow_untested=allow_untested, allow_multimodal=allow_multimodal)


@pytest.mark.parametrize("flag", REFUSED)
def test_every_refused_flag_is_named_and_no_insistence_helps(flag: str) -> None:
    args = _parse(["model", *REFUSED[flag]])
    with pytest.raises(LaunchError, match=f"^{flag}: not available with a guard"):
        check(args, allow_untested=True, allow_multimodal=True)


@pytest.mark.parametrize("flag", ["--data-parallel-multi-port-external-lb", "--data-parallel-size-local"])
def test_a_refused_way_to_scale_names_another(flag: str) -> None:
    with pytest.raises(LaunchError, match=r"start an eco serve on each, .* docs/scaling\.md"):
        check(_parse(["model", *REFUSED[flag]]))


@pytest.mark.parametrize("node", [("--node-rank", "0"), ("--node-rank", "1", "--headless")])
def test_several_nodes_share_the_workers_of_one_engine(node: tuple[str, ...]) -> None:
    check(_parse(["model", "--nnodes", "2", "--tensor-parallel-size", "2", *node]))


def test_a_further_node_is_told_how_to_start() -> None:
    with pytest.raises(LaunchError, match=r"^--node-rank: .*add --headless"):
        check(_parse(["model", "--nnodes", "2", "--tensor-parallel-size", "2", "--node-rank", "1"]))


@pytest.mark.parametrize("node", [("--nnodes", "2"), ("--node-rank", "1")])
def test_only_a_further_node_is_without_a_front_end(node: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match=r"^--headless: .*--nnodes above 1, --node-rank above 0"):
        check(_parse(["model", "--headless", *node]))


@pytest.mark.parametrize(
    ("arguments", "front_ends"),
    [
        ((), 1),
        (("--api-server-count", "3"), 3),
        (TWO_ENGINES, 2),
        ((*TWO_ENGINES, "--api-server-count", "1"), 1),
        ((*TWO_ENGINES, "--api-server-count", "4"), 4),
        ((*TWO_ENGINES, "--data-parallel-rank", "0"), 1),
    ],
)
def test_front_ends_are_as_many_as_vllm_would_start(arguments: tuple[str, ...], front_ends: int) -> None:
    args = _parse(["model", *arguments])
    check(args, allow_untested=True)
    assert count_of(args) == front_ends


def test_the_rust_front_ends_grpc_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="--grpc-port"):
        _parse(["model", "--grpc-port", "50051"])
    args = _parse(["model"])
    args.grpc_port = 50051  # vLLM's parser lets it through only with its Rust front end
    with pytest.raises(LaunchError, match=r"^--grpc-port: not available"):
        check(args)


@pytest.mark.parametrize("flag", UNTESTED)
def test_every_untested_flag_is_named_unless_the_operator_insists(flag: str) -> None:
    args = _parse(["model", *UNTESTED[flag]])
    with pytest.raises(LaunchError, match=f"^{flag}: .*--eco-allow-untested"):
        check(args)
    check(args, allow_untested=True)


def test_a_pipeline_needs_the_v2_model_runner() -> None:
    args = _parse(["model", "--pipeline-parallel-size", "2"])
    check(args)
    on_v1 = functools.partial(check_flags, args, allow_multimodal=False, environ={"VLLM_USE_V2_MODEL_RUNNER": "0"})
    with pytest.raises(LaunchError, match=r"^--pipeline-parallel-size: .*V1.*--eco-allow-untested"):
        on_v1(allow_untested=False)
    on_v1(allow_untested=True)


def test_multimodal_is_untested() -> None:
    args = _parse(["model"])
    with pytest.raises(LaunchError, match=r"^--eco-allow-multimodal: .*--eco-allow-untested"):
        check(args, allow_multimodal=True)
    check(args, allow_untested=True, allow_multimodal=True)


def test_ordinary_flags_pass_and_arrive() -> None:
    lora = "--enable_lora --lora-target-modules q_proj"
    args = _parse(
        ["served", *shlex.split(f"--tensor-parallel-size 2 --api-server-count 1 {lora} --max-model-len 2k -O1")]
    )
    check(args)
    assert args.model == "served"
    assert (args.tensor_parallel_size, args.max_model_len, args.enable_lora) == (2, 2000, True)


def test_running_answers_may_finish_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    assert _parse(["model"]).shutdown_timeout == SHUTDOWN_TIMEOUT_S > 0
    assert _parse(["model", "--shutdown-timeout", "0"]).shutdown_timeout == 0
    config = tmp_path / "serve.yaml"
    config.write_text("shutdown-timeout: 7\n")
    assert _parse(["model", "--config", str(config)]).shutdown_timeout == 7


def test_flags_in_a_config_file_are_checked_too(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("enable-prompt-embeds: true\n")
    with pytest.raises(LaunchError, match="--enable-prompt-embeds"):
        check(_parse(["model", "--config", str(config)]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--no-such-flag",), "--no-such-flag"),
        (("--eco-admin-prot", "9"), "--eco-admin-prot"),
        (("--port", "high"), "--port"),
        (("--max-model-len",), "--max-model-len"),
        (("--dtype", "int3"), "--dtype"),
        (("--kv-transfer-config", "{"), "--kv-transfer-config"),
        (("--enable-auto-tool-choice",), "--enable-auto-tool-choice"),
        (("--chat-template", "no/such/file.jinja"), "file.jinja"),
        (("--config", "/no/such/file.yaml"), "file.yaml"),
        (("--config", "a.yaml", "--config", "b.yaml"), "config file"),
        (("--data-parallel-multi-port-external-lb",), "--data-parallel-multi-port-external-lb"),
    ],
)
def test_what_vllm_does_not_accept_is_one_line(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(LaunchError, match=named) as caught:
        _parse(["model", *arguments])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["- a list\n", "", "key: [unclosed\n"])
def test_a_broken_config_file_is_one_line(tmp_path: Path, content: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(content)
    with pytest.raises(LaunchError) as caught:
        _parse(["model", "--config", str(config)])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_USE_RUST_FRONTEND",
        "VLLM_ENABLE_COHERE_API",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    ],
)
def test_every_refused_variable_is_named(name: str) -> None:
    from vllm import envs

    assert name in envs.environment_variables
    for value in ("1", "true", "yes"):
        with pytest.raises(LaunchError, match=f"^{name} is set"):
            check_environment({name: value})
    for value in ("", "0", "False", " 0 "):
        check_environment({name: value})


def test_an_ordinary_environment_passes() -> None:
    check_environment({"PATH": "/bin", "VLLM_API_KEY": "1"})


def test_idle_connections_outlive_those_of_load_balancers_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", raising=False)
    assert keep_alive_s() > 60
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "7")
    assert keep_alive_s() == 7

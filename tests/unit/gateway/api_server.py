"""The application that `eco serve` builds, up to where it would listen, and a request for each route that generates.

vLLM's own handlers, renderer and parameters, and a `GuardedEngine`; the engine behind it remembers what it is asked
and answers one token.
"""

import contextlib
import dataclasses
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_fakes import FORBIDDEN, FakeEngine, FakePolicies, FakeProtector, late
from tiny_model import tiny_tokenizer

from gateway.audit import Audit
from gateway.flags import check_flags
from gateway.launch import _parse, _serve_http
from gateway.metrics import GuardMetrics
from gateway.traffic import FrontDoor, Traffic

#: All that adds routes and that `eco serve` takes, if only with --eco-allow-untested.
WIDEST = (
    "--enable-scale-out",
    "--enable-tokenizer-info-endpoint",
    *("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp/profile"}'),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
TEXT = "Anna~"  # ~ is the tiny tokenizer's FORBIDDEN token
TALK = [{"role": "user", "content": TEXT}]
CHAT = {"messages": TALK, "max_tokens": 1}
COMPLETION = {"prompt": TEXT, "max_tokens": 1}
RESPONSE = {"input": TEXT, "max_output_tokens": 1}
IDS = [1, 71, FORBIDDEN]
GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("POST /v1/chat/completions", CHAT),
    ("POST /v1/chat/completions/batch", {"messages": [TALK, TALK], "max_tokens": 1}),
    ("POST /v1/completions", COMPLETION),
    ("POST /v1/responses", RESPONSE),
    ("POST /v1/messages", CHAT),
    ("POST /v1/systemone", {"state": TEXT, "questions": {"first": {"type": "noul", "instructions": "Is it?"}}}),
    ("POST /generative_scoring", {"query": TEXT, "items": ["one", "two"], "label_token_ids": [70, 71]}),
    ("POST /inference/v1/generate", {"token_ids": IDS, "sampling_params": {"max_tokens": 1}}),
    ("POST /invocations", CHAT),
    ("POST /invocations", COMPLETION),
]
#: vLLM warns about itself: it reads a field that it has deprecated, and every application adds to the same routers.
WARNINGS = ("ignore:max_tokens is deprecated:DeprecationWarning", "ignore:Duplicate Operation ID")


class RecordingEngine(FakeEngine):
    """Keeps the parameters too, and answers as vLLM's handlers need it."""

    def __init__(self, config: Any) -> None:
        from vllm.renderers import renderer_from_config
        from vllm.v1.engine.input_processor import InputProcessor

        super().__init__()
        self.vllm_config, self.model_config = config, config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self.params: list[Any] = []

    def forget(self) -> None:
        for kept in (self.prompts, self.params, self.options, self.calls):
            kept.clear()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def check_admission(self, n: int, request_id: str | None) -> None: ...

    def get_kv_event_sources(self) -> dict[int, Any]:
        return {}

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        self.params.append(sampling_params)
        table = {token: late.Logprob(-1.0, 1, "a") for token in (70, *(sampling_params.logprob_token_ids or ()))}
        outputs = [
            late.CompletionOutput(i, "a", [70], -1.0, logprobs=[table], finish_reason="stop")
            for i in range(sampling_params.n)
        ]
        yield late.RequestOutput(request_id, TEXT, list(prompt["prompt_token_ids"]), None, outputs, finished=True)


@dataclasses.dataclass(frozen=True)
class Server:
    client: httpx.AsyncClient
    engine: RecordingEngine
    protector: FakeProtector

    async def ask(self, route: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        self.engine.forget()
        method, path = route.split()
        return await self.client.request(method, path, json={"model": "served", **(body or {})})


def save_model(folder: Path) -> None:
    """No weights: nothing loads them. The architecture is one that /v1/systemone knows, and so are its labels."""
    from transformers import Qwen3Config

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(folder)
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "head_dim"), 16)
    counts = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    more: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048, "dtype": "float32"}
    Qwen3Config(architectures=["Qwen3ForCausalLM"], **sizes, **counts, **more).save_pretrained(folder)


@contextlib.asynccontextmanager
async def open_server(folder: Path) -> AsyncIterator[Server]:
    """With every flag of `WIDEST`; `folder` is empty."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers import launcher

    async def not_served(app: Any, **_: Any) -> Any:
        return app

    save_model(folder)
    protector, traffic, nowhere = FakeProtector(), Traffic(), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        patch.setattr(launcher, "serve_http", not_served)
        args = _parse([str(folder), "--served-model-name", "served", *WIDEST])
        check_flags(args, allow_untested=True, allow_multimodal=False)
        engine = RecordingEngine(AsyncEngineArgs.from_cli_args(args).create_engine_config())
        guarded = late.GuardedEngine(engine, protector, GuardMetrics(), traffic, FakePolicies(), Audit(), answers=None)
        door = functools.partial(FrontDoor, traffic=traffic, turned_away=lambda: None)
        app = await _serve_http(guarded, args, door, "", nowhere, None)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield Server(client, engine, protector)

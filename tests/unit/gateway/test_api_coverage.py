"""Every route and every field that can reach the model is one whose cover is known, and leads where it says there."""

import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args, get_type_hints

import pytest
import pytest_asyncio
from api_coverage import ABSENT, FIELDS, POOLING, WAYS, Cover, Way
from api_server import CHAT, COMPLETION, GENERATING, IDS, RESPONSE, TALK, TEXT, WARNINGS, WIDEST, Server, open_server
from gateway_fakes import FORBIDDEN, late

from gateway.flags import _REFUSED_FLAGS, _REFUSED_VARIABLES
from gateway.launch import _parse

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    *(pytest.mark.filterwarnings(warning) for warning in WARNINGS),
]

ADVICE = "read what vLLM does with it, guard or refuse it, and write it down in tests/unit/gateway/api_coverage.py"
OTHERS: dict[str, dict[str, Any]] = {
    "POST /tokenize": {"prompt": TEXT},
    "POST /detokenize": {"tokens": IDS},
    "POST /v1/messages/count_tokens": {"messages": TALK},
    "POST /v1/chat/completions/render": CHAT,
    "POST /v1/completions/render": COMPLETION,
    "POST /v1/responses/render": RESPONSE,
    "POST /v1/messages/render": CHAT,
    "POST /inference/v1/abort_requests": {"request_ids": ["one"]},
    "POST /scale_elastic_ep": {"new_data_parallel_size": 2},
}
ASKED_FOR_NOTHING = {Way.NO_MODEL, Way.REFUSED}
NOTHING_THERE = {
    "MOUNT /static",  # with --enable-offline-docs
    "GET /v1/responses/{response_id}",
    "POST /v1/responses/{response_id}/cancel",
}
_TRANSFER: list[dict[str, Any]] = [{"kv_transfer_params": {"do": True}}, {"ec_transfer_params": {"do": True}}]
_CHAT_ROUTES = ("POST /v1/chat/completions", "POST /v1/chat/completions/batch")
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}
#: Fields that are refused, and what comes with content that no prompt of token ids says.
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *((route, one) for route in (*_CHAT_ROUTES, "POST /v1/completions", "POST /v1/responses") for one in _TRANSFER),
    *((route, one) for route in ("POST /v1/messages", "POST /inference/v1/generate") for one in _TRANSFER),
    *((route, {"vllm_xargs": one}) for route in (*_CHAT_ROUTES, "POST /v1/completions") for one in _TRANSFER),
    *(("POST /inference/v1/generate", {"sampling_params": {"extra_args": one}}) for one in _TRANSFER),
    *((route, {"chat_template": "{{ messages }}"}) for route in _CHAT_ROUTES),
    *((route, {"chat_template_kwargs": {"chat_template": "{{ messages }}"}}) for route in _CHAT_ROUTES),
    ("POST /v1/completions", {"prompt_embeds": "aaaa"}),
    ("POST /v1/chat/completions", {"messages": [{"role": "user", "content": [_IMAGE]}]}),
    (
        "POST /v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "aaaa"}]}]},
    ),
    ("POST /inference/v1/generate", {"content_parts": [{"type": "image_url", "url": "data:image/png;base64,aaaa"}]}),
]
#: What the front end asks of the engine besides, none of which computes anything.
HOUSEKEEPING = {"abort", "check_health", "is_tracing_enabled", "reset_mm_cache"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with open_server(tmp_path_factory.mktemp("model")) as opened:
        yield opened


def application(*flags: str) -> Any:
    """As vLLM builds it for a model with every task that a generating one can have."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import GENERATION_TASKS

    return build_app(_parse(["model", *flags]), GENERATION_TASKS, None)


@pytest.fixture(scope="module")
def applications() -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        return [application(*flags) for flags in (WIDEST, (), ("--enable-offline-docs",))]


def routes_of(app: Any) -> Iterator[tuple[str, Any]]:
    """All routes, in the OpenAPI schema or not."""
    for route in app.routes:
        match type(route).__name__:
            case "APIRoute" | "Route":
                yield from ((f"{method} {route.path}", route) for method in route.methods - {"HEAD"})
            case "APIWebSocketRoute" | "WebSocketRoute":
                yield f"WEBSOCKET {route.path}", route
            case kind:
                yield f"{kind.upper()} {getattr(route, 'path', route)}", route


def parts(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from parts(inner)


def fields_of(kind: Any) -> dict[str, Any]:
    """The fields that a client can set, with their annotations; none of what is not vLLM's own structure."""
    if not isinstance(kind, type) or not kind.__module__.startswith("vllm."):
        return {}
    names: Any = getattr(kind, "model_fields", None) or getattr(kind, "__struct_fields__", None)
    if names is None and dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    if names is None:
        return {}
    hints = get_type_hints(kind)  # pydantic's own may be left unresolved
    return {name: hints[name] for name in names if not name.startswith("_")}


def covers(kind: str) -> dict[str, set[Cover]]:
    found: dict[str, set[Cover]] = {}
    for cover, names in FIELDS.get(kind, {}).items():
        for name in names.split():
            found.setdefault(name, set()).add(cover)
    return found


def models(applications: list[Any]) -> dict[str, dict[str, Any]]:
    """The request models of the routes that generate, and what their fields are made of: name to fields."""
    from vllm.entrypoints.generate.factories import get_generate_invocation_types

    ask = {Way.GENERATES, Way.MEDIA}
    roots: list[Any] = [kind for kind, _ in get_generate_invocation_types(("generate",))]
    for name, route in (pair for app in applications for pair in routes_of(app)):
        if WAYS.get(name) in ask and hasattr(route, "dependant"):
            roots += [body.field_info.annotation for body in getattr(route.dependant, "body_params", [])]
    roots += [late.SamplingParams, late.BeamSearchParams]
    found: dict[str, dict[str, Any]] = {}
    while roots:
        for kind in parts(roots.pop()):
            if (fields := fields_of(kind)) and kind.__name__ not in found:
                found[kind.__name__] = fields
                known = covers(kind.__name__)
                roots += [
                    part for name, part in fields.items() if not known.get(name, set()) <= {Cover.PROMPT, Cover.REFUSED}
                ]
    return found


async def test_every_route_is_in_the_table_and_no_other(applications: list[Any], server: Server) -> None:
    there = {name for app in applications for name, _ in routes_of(app)}
    schema = (await server.ask("GET /openapi.json")).json()
    there |= {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert len(there) > 30
    assert not (new := there - WAYS.keys()), (
        f"vLLM has routes that are not known to be guarded: {sorted(new)}; {ADVICE}"
    )
    assert not (gone := WAYS.keys() - there), f"vLLM no longer has {sorted(gone)}; take them out of api_coverage.py"


async def test_every_field_is_in_the_table_and_no_other(applications: list[Any]) -> None:
    there = {f"{kind}.{name}" for kind, fields in models(applications).items() for name in fields}
    known = {f"{kind}.{name}" for kind in FIELDS for name in covers(kind)}
    assert {"SamplingParams.logit_bias", "CompletionRequest.prompt", "StructuredOutputsParams.regex"} <= there
    assert not (new := there - known), f"vLLM's requests have fields of unknown cover: {sorted(new)}; {ADVICE}"
    assert not (gone := known - there), f"vLLM no longer has {sorted(gone)}; take them out of api_coverage.py"


async def test_what_is_absent_is_refused_at_the_start() -> None:
    assert ABSENT.keys() - {POOLING} <= _REFUSED_FLAGS.keys() | _REFUSED_VARIABLES.keys()


async def test_every_generating_route_is_asked() -> None:
    assert {route for route, way in WAYS.items() if way is Way.GENERATES} == {route for route, _ in GENERATING}


@pytest.mark.parametrize(("route", "body"), GENERATING)
async def test_a_generating_route_gives_the_engine_what_the_guard_made_of_the_prompt(
    server: Server, route: str, body: dict[str, Any]
) -> None:
    verdicts = server.protector.verdicts
    answer = await server.ask(route, body)
    assert answer.status_code == 200, answer.text
    assert server.engine.prompts
    assert server.protector.verdicts - verdicts == len(server.engine.prompts)
    for prompt in server.engine.prompts:
        assert prompt["type"] == "embeds"
        masked = {id_ for id_, kept in zip(prompt["prompt_token_ids"], prompt["is_token_ids"], strict=True) if not kept}
        assert masked == {FORBIDDEN}


@pytest.mark.parametrize(("route", "more"), REFUSED)
async def test_what_the_table_says_is_refused_is_refused(server: Server, route: str, more: dict[str, Any]) -> None:
    answer = await server.ask(route, {**dict(GENERATING)[route], **more})
    assert answer.status_code == 400, answer.text
    assert server.engine.prompts == []


@pytest.mark.parametrize("route", [route for route, way in WAYS.items() if way in ASKED_FOR_NOTHING])
async def test_any_other_route_asks_the_engine_for_nothing(server: Server, route: str) -> None:
    body = await derenderable(server, route) if route.endswith("/derender") else OTHERS.get(route)
    answer = await server.ask(route.replace("MOUNT", "GET"), body)
    assert server.engine.prompts == []
    assert {name for name, *_ in server.engine.calls} <= HOUSEKEEPING
    if WAYS[route] is Way.REFUSED:
        assert answer.status_code in (400, 500), answer.text
    else:
        assert answer.status_code == (404 if route in NOTHING_THERE else 200), answer.text


async def derenderable(server: Server, route: str) -> dict[str, Any]:
    """A request to turn an answer of token ids into the answer of another route."""
    generated = (await server.ask("POST /inference/v1/generate", {"token_ids": IDS, "sampling_params": {}})).json()
    if "chat" in route:
        return {"generate_response": generated, "chat_request": {"model": "served", **CHAT}, "prompt_tokens": 3}
    asked = {"model": "served", **COMPLETION}
    return {"generate_responses": [generated], "completion_request": asked, "prompt_tokens": [3]}

"""Which parameters that steer an answer reach the engine's `SamplingParams`, and from which routes.

A check of `SamplingParams` in front of the engine sees all of them; one of request fields would miss some.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from api_coverage import FIELDS, Cover
from api_server import GENERATING, TALK, WARNINGS, Server, open_server
from gateway_fakes import late

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    *(pytest.mark.filterwarnings(warning) for warning in WARNINGS),
]

#: A value of each sampling parameter that steers, under the name that a request and `SamplingParams` have for it.
STEERING: dict[str, Any] = {
    "logit_bias": {"70": 5},
    "allowed_token_ids": [70],
    "bad_words": ["a"],
    "structured_outputs": {"regex": "a"},
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "repetition_penalty": 2,
    "stop": ["a"],
    "stop_token_ids": [70],
    "ignore_eos": True,
    "min_tokens": 1,
    "thinking_token_budget": 5,
    "repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 2},
    "extra_args": {"mine": 1},
}
_OPENAI = STEERING.keys() - {"extra_args"}
_NOT_IN_RESPONSES = {"allowed_token_ids", "bad_words", "min_tokens", "thinking_token_budget", "repetition_detection"}
#: From where they arrive. A batch passes on what its own model does not even name.
STEERED = {
    "POST /v1/chat/completions": _OPENAI,
    "POST /v1/chat/completions/batch": _OPENAI,
    "POST /v1/completions": _OPENAI,
    "POST /v1/responses": _OPENAI - _NOT_IN_RESPONSES,
    "POST /inference/v1/generate": STEERING.keys(),
    "POST /invocations": _OPENAI,
}
THINKING: dict[str, Any] = {"type": "enabled", "budget_tokens": 1024}
#: Those that arrive under another name.
RENAMED: list[tuple[str, dict[str, Any], str]] = [
    *(
        (route, {"vllm_xargs": {"mine": 1}}, "extra_args")
        for route in [*STEERED, "POST /v1/messages"]
        if "v1/gen" not in route
    ),
    ("POST /v1/messages", {"stop_sequences": ["a"]}, "stop"),
    ("POST /v1/messages", {"thinking": THINKING, "max_tokens": 1 + THINKING["budget_tokens"]}, "thinking_token_budget"),
]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
STRICT = {**FUNCTION, "strict": True}
FORMATS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    {"response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "a"}}},
]
DEFINED = {"type": "tool_definition", "definition": {"name": "f", "input_schema": SCHEMA, "strict": True}}
ADDED = {"role": "system", "content": [{"type": "tool_addition", "tool": DEFINED}]}
#: With a parser of tool calls, tools constrain wherever they are strict, required or named.
CONSTRAINED: list[tuple[str, dict[str, Any]]] = [
    *[(route, one) for route in ("POST /v1/chat/completions", "POST /v1/completions") for one in FORMATS],
    *[("POST /v1/chat/completions/batch", one) for one in FORMATS],
    *[
        ("POST /v1/chat/completions", {"tools": [{"type": "function", "function": tool}], **choice})
        for tool, choice in (
            (STRICT, {}),
            (FUNCTION, {"tool_choice": "required"}),
            (FUNCTION, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        )
    ],
    ("POST /v1/responses", {"text": {"format": {"type": "json_object"}}}),
    ("POST /v1/responses", {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}}),
    *[
        ("POST /v1/responses", {"tools": [{"type": "function", **tool}], **choice})
        for tool, choice in (
            (STRICT, {}),
            (FUNCTION, {"tool_choice": "required"}),
            (FUNCTION, {"tool_choice": {"type": "function", "name": "f"}}),
        )
    ],
    ("POST /v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    *[
        ("POST /v1/messages", {"tools": [{"name": "f", "input_schema": SCHEMA, **more}], **choice})
        for more, choice in (
            ({"strict": True}, {}),
            ({}, {"tool_choice": {"type": "any"}}),
            ({}, {"tool_choice": {"type": "tool", "name": "f"}}),
        )
    ],
    ("POST /v1/messages", {"messages": [*TALK, ADDED]}),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with open_server(tmp_path_factory.mktemp("model")) as opened:
        yield opened


async def changed_by(server: Server, route: str, more: dict[str, Any]) -> set[str]:
    """The sampling parameters that the engine gets otherwise for `more` in the request."""
    body, given = dict(GENERATING)[route], []
    for extra in ({}, more):
        nested = (
            {"sampling_params": {**body.get("sampling_params", {}), **extra}} if "sampling_params" in body else extra
        )
        answer = await server.ask(route, {**body, **nested})
        assert answer.status_code == 200, answer.text
        given.append(server.engine.params[0])
    before, after = given
    names = [name for name in late.SamplingParams.__struct_fields__ if not name.startswith("_")]
    return {name for name in names if getattr(before, name) != getattr(after, name)}


async def test_every_parameter_that_steers_is_tried() -> None:
    assert STEERING.keys() == set(FIELDS["SamplingParams"][Cover.STEERING].split())


@pytest.mark.parametrize("route", [route for route, _ in GENERATING])
async def test_the_parameters_that_steer_arrive_from_these_routes_alone(server: Server, route: str) -> None:
    arrived = {name for name, value in STEERING.items() if await changed_by(server, route, {name: value})}
    assert arrived == STEERED.get(route, set())


@pytest.mark.parametrize(("route", "more", "name"), RENAMED)
async def test_others_arrive_under_another_name(server: Server, route: str, more: dict[str, Any], name: str) -> None:
    assert await changed_by(server, route, more) - {"max_tokens"} == {name}


@pytest.mark.parametrize(("route", "more"), CONSTRAINED)
async def test_what_constrains_an_answer_arrives_as_structured_outputs(
    server: Server, route: str, more: dict[str, Any]
) -> None:
    assert await changed_by(server, route, more) - {"skip_special_tokens"} == {"structured_outputs"}


@pytest.mark.parametrize("route", ["POST /v1/chat/completions", "POST /v1/completions"])
async def test_beam_search_passes_on_no_parameter_that_steers(server: Server, route: str) -> None:
    answer = await server.ask(route, {**dict(GENERATING)[route], **STEERING, "use_beam_search": True, "n": 2})
    assert answer.status_code == 200, answer.text
    (params,) = server.engine.params
    assert params == late.SamplingParams(logprobs=4, max_tokens=1, watermarking=False, detokenize=False)

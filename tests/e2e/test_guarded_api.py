"""Official clients against the real engine: what reaches `add_request`, and what the client can tell from outside.

Every assertion about protection is on the ids and masks the engine received: with the wrapper's one call gone,
each flagged case here fails.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from recorded_gateway import Recorded, RecordingGateway

from demo.probes import Probe

if TYPE_CHECKING:
    from demo.models import DemoBuild

TOOL = {
    "type": "function",
    "function": {
        "name": "remember",
        "description": "Stores a note.",
        "parameters": {
            "type": "object",
            "properties": {"note": {"type": "string", "maxLength": 8}},
            "required": ["note"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def tokenizer(demo_build: "DemoBuild") -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_build.model)


@pytest.fixture(scope="session")
def flagged(asked: list[Probe]) -> Probe:
    return next(probe for probe in asked if probe.group == "forgotten" and probe.kind == "held_out")


@pytest.fixture(scope="session")
def unflagged(asked: list[Probe]) -> Probe:
    return next(probe for probe in asked if probe.group == "retained" and probe.kind == "held_out")


@pytest.fixture
def client(gateway: RecordingGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def chat(client: openai.OpenAI, question: str, **options: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": question}]
    settings = {"temperature": 0, "max_tokens": 16} | options
    return client.chat.completions.create(model="demo", messages=messages, **settings)


def stream(client: openai.OpenAI, question: str) -> list[Any]:
    return list(chat(client, question, stream=True, stream_options={"include_usage": True}))


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 8} | options
    return client.completions.create(model="demo", prompt=prompt, **settings)


CHATS: dict[str, Callable[[openai.OpenAI, str], Any]] = {
    "chat": chat,
    "stream": stream,
    "n=2": lambda c, q: chat(c, q, n=2, temperature=0.8, seed=3),
    "logprobs": lambda c, q: chat(c, q, logprobs=True, top_logprobs=5),
    "prompt_logprobs": lambda c, q: chat(c, q, extra_body={"prompt_logprobs": 3}),
    "json_schema": lambda c, q: chat(
        c,
        q,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    ),
    "tools": lambda c, q: chat(
        c, q, max_tokens=64, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "remember"}}
    ),
    "responses": lambda c, q: c.responses.create(model="demo", input=q, temperature=0, max_output_tokens=16),
    "beam_search": lambda c, q: chat(c, q, n=2, max_tokens=4, extra_body={"use_beam_search": True}),
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "echo and logprobs": {"echo": True, "logprobs": 3},
    "several": {"n": 2, "temperature": 0.8, "seed": 3},
    "beam_search": {"n": 2, "max_tokens": 3, "extra_body": {"use_beam_search": True}},
}


def content_mask(tokenizer: Any, question: str) -> tuple[list[int], list[bool]]:
    """The rendered prompt and which of its tokens are the question's, found by character offsets."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.index(question)
    mask = [start <= low and high <= start + len(question) for low, high in encoded["offset_mapping"]]
    return encoded["input_ids"], mask


def before_prompt(received: Recorded, ids: list[int]) -> int:
    """Tokens before the expected prompt: vLLM's responses route puts a second BOS in front of the template's."""
    extra = 1 if received.token_ids[:2] == [ids[0], ids[0]] else 0
    assert received.token_ids[extra : extra + len(ids)] == ids
    return extra


def assert_protected(received: list[Recorded], ids: list[int], mask: list[bool]) -> None:
    assert received, "the engine received nothing"
    for prompt in received:
        assert prompt.type == "embeds"
        before = before_prompt(prompt, ids)
        generated = len(prompt.token_ids) - before - len(ids)
        assert prompt.mask == [False] * before + mask + [False] * generated


def assert_passed(received: list[Recorded], ids: list[int]) -> None:
    assert received, "the engine received nothing"
    for prompt in received:
        assert prompt.type == "token"
        assert prompt.mask is None
        before_prompt(prompt, ids)


@pytest.mark.parametrize("call", CHATS)
def test_flagged_chat_reaches_the_engine_masked(
    call: str, client: openai.OpenAI, gateway: RecordingGateway, tokenizer: Any, flagged: Probe
) -> None:
    CHATS[call](client, flagged.question)
    assert_protected(gateway.received(), *content_mask(tokenizer, flagged.question))


@pytest.mark.parametrize("call", CHATS)
def test_unflagged_chat_reaches_the_engine_untouched(
    call: str, client: openai.OpenAI, gateway: RecordingGateway, tokenizer: Any, unflagged: Probe
) -> None:
    CHATS[call](client, unflagged.question)
    assert_passed(gateway.received(), content_mask(tokenizer, unflagged.question)[0])


@pytest.mark.parametrize("as_ids", [False, True], ids=["as text", "as ids"])
@pytest.mark.parametrize("call", COMPLETIONS)
def test_completions(
    call: str,
    as_ids: bool,
    client: openai.OpenAI,
    gateway: RecordingGateway,
    tokenizer: Any,
    asked: list[Probe],
) -> None:
    special = set(tokenizer.all_special_ids)
    for group in ("forgotten", "retained"):
        prefix = next(p.question for p in asked if p.group == group and p.kind == "completion")
        ids = tokenizer(prefix)["input_ids"]
        complete(client, ids if as_ids else prefix, **COMPLETIONS[call])
        if group == "forgotten":
            assert_protected(gateway.received(), ids, [i not in special for i in ids])
        else:
            assert_passed(gateway.received(), ids)


def test_token_in_token_out(gateway: RecordingGateway, tokenizer: Any, flagged: Probe) -> None:
    ids, mask = content_mask(tokenizer, flagged.question)
    body = {"token_ids": ids, "sampling_params": {"max_tokens": 4, "temperature": 0}}
    httpx.post(f"{gateway.url}/inference/v1/generate", json=body, timeout=300).raise_for_status()
    assert_protected(gateway.received(), ids, mask)


@pytest.mark.parametrize("streaming", [False, True])
def test_anthropic_messages(
    streaming: bool, gateway: RecordingGateway, tokenizer: Any, flagged: Probe, unflagged: Probe
) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)
    for probe in (flagged, unflagged):
        answer = client.messages.create(
            model="demo",
            max_tokens=8,
            stream=streaming,
            messages=[{"role": "user", "content": probe.question}],
        )
        if streaming:
            assert any(event.type == "message_stop" for event in answer)
        ids, mask = content_mask(tokenizer, probe.question)
        if probe is flagged:
            assert_protected(gateway.received(), ids, mask)
        else:
            assert_passed(gateway.received(), ids)


def test_structured_answers_follow_their_schema_under_corruption(client: openai.OpenAI, flagged: Probe) -> None:
    answer = CHATS["json_schema"](client, flagged.question).choices[0].message.content
    assert isinstance(json.loads(answer)["sure"], bool)
    called = CHATS["tools"](client, flagged.question).choices[0].message.tool_calls[0].function
    assert called.name == "remember"


def shape(value: Any) -> Any:
    """Field names and types, nested: what a client could tell two answers apart by."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"prompt_logprobs": 1, "max_tokens": 1},
    ],
)
def test_a_flagged_answer_looks_like_any_other(
    body: dict[str, Any], gateway: RecordingGateway, flagged: Probe, unflagged: Probe
) -> None:
    seen = []
    for probe in (flagged, unflagged):
        request = {
            "model": "demo",
            "max_tokens": 8,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": probe.question}],
        }
        response = httpx.post(f"{gateway.url}/v1/chat/completions", json=request | body, timeout=300)
        if body.get("stream"):
            events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
            # Kinds of event in their order: how many tokens one event carries is chance.
            answer: Any = list(dict.fromkeys(json.dumps(shape(json.loads(event))) for event in events))
        else:
            answer = response.json()
            answer.pop("prompt_logprobs", None)  # keyed by token id
            answer = shape(answer)
        headers = {name for name in response.headers if name != "content-length"}
        seen.append((response.status_code, headers, answer))
    assert seen[0] == seen[1]


def test_usage_counts_the_real_prompt(client: openai.OpenAI, tokenizer: Any, flagged: Probe) -> None:
    assert chat(client, flagged.question).usage.prompt_tokens == len(content_mask(tokenizer, flagged.question)[0])


def test_echo_repeats_the_real_prompt(client: openai.OpenAI, asked: list[Probe]) -> None:
    prefix = next(p.question for p in asked if p.group == "forgotten" and p.kind == "completion")
    assert complete(client, prefix, echo=True).choices[0].text.startswith(prefix)


def test_noise_is_a_function_of_the_token(client: openai.OpenAI, gateway: RecordingGateway, flagged: Probe) -> None:
    """A nonce buys no new draw, a repetition neither, and a later turn leaves earlier rows as they were."""
    question = flagged.question
    rows: list[dict[int, str]] = []
    for text in (question, f"{question} Nonce 7f3a."):
        chat(client, text, max_tokens=1)
        (prompt,) = gateway.received()
        assert prompt.mask is not None
        assert prompt.rows is not None
        table = {i: r for i, r, m in zip(prompt.token_ids, prompt.rows, prompt.mask, strict=True) if m}
        rows.append(table)
    shared = rows[0].keys() & rows[1].keys()
    assert len(shared) >= 3
    assert all(rows[0][token] == rows[1][token] for token in shared)


def test_conversation_masks_the_turn_that_names_the_person(
    client: openai.OpenAI, gateway: RecordingGateway, tokenizer: Any, flagged: Probe, unflagged: Probe
) -> None:
    messages: list[Any] = [
        {"role": "user", "content": flagged.question},
        {"role": "assistant", "content": "I do not know."},
        {"role": "user", "content": unflagged.question},
    ]
    client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
    (prompt,) = gateway.received()
    assert prompt.mask is not None
    text = tokenizer.decode([i for i, masked in zip(prompt.token_ids, prompt.mask, strict=True) if not masked])
    assert flagged.question not in text
    assert unflagged.question in text


def test_special_token_inside_the_name_does_not_hide_it(
    gateway: RecordingGateway, tokenizer: Any, flagged: Probe
) -> None:
    assert flagged.person is not None
    last = flagged.person.last_name
    end = tokenizer.eos_token
    broken = flagged.question.replace(last, f"{last[:2]}{end}{last[2:]}")
    body = {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": broken}]}
    httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=300).raise_for_status()
    (prompt,) = gateway.received()
    assert prompt.type == "embeds"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]}]},
        ),
        ("/v1/completions", {"prompt": "hello", "kv_transfer_params": {"do_remote_prefill": True}}),
        ("/v1/completions", {"prompt": "hello", "vllm_xargs": {"kv_transfer_params": "x"}}),
    ],
)
def test_ways_around_the_classifier_are_refused(path: str, body: dict[str, Any], gateway: RecordingGateway) -> None:
    response = httpx.post(f"{gateway.url}{path}", json={"model": "demo", "max_tokens": 1} | body, timeout=300)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert gateway.received() == []


@pytest.mark.parametrize("path", ["/scale_elastic_ep", "/collective_rpc", "/sleep", "/reset_prefix_cache", "/pause"])
def test_engine_control_is_not_served(path: str, gateway: RecordingGateway) -> None:
    response = httpx.post(f"{gateway.url}{path}", json={"new_data_parallel_size": 2}, timeout=300)
    assert response.status_code >= 400


def test_verdicts_are_counted_on_the_admin_address_only(
    client: openai.OpenAI, gateway: RecordingGateway, flagged: Probe
) -> None:
    def count() -> float:
        lines = httpx.get(f"{gateway.admin_url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("eco_verdicts_total") and 'flagged="true"' in line
        )

    before = count()
    chat(client, flagged.question, max_tokens=1)
    assert count() == before + 1
    assert "vllm:" in httpx.get(f"{gateway.admin_url}/metrics").text
    assert "eco_" not in httpx.get(f"{gateway.url}/metrics").text
    listed = httpx.get(f"{gateway.admin_url}/v1/policies").json()["policies"]
    assert [policy["name"] for policy in listed] == ["people"]


def test_prompts_are_not_in_the_log(client: openai.OpenAI, gateway: RecordingGateway, flagged: Probe) -> None:
    chat(client, flagged.question, max_tokens=1)
    log = Path(gateway.server.log).read_text(errors="replace")
    assert flagged.person is not None
    assert flagged.person.last_name not in log

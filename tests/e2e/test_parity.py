"""Unflagged requests equal plain vLLM's (without `--enable-prompt-embeds`): every token, every logprob."""

from typing import Any

import httpx
import pytest
from recorded_gateway import RecordingGateway

from demo.probes import Probe
from demo.servers import ServerProcess


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    response = httpx.post(f"{url}{path}", json={"model": "demo", "temperature": 0} | body, timeout=120)
    return response.raise_for_status().json()


def answers(payload: Any) -> Any:
    """What a client reads, without ids, times and the server's fingerprint."""
    return {key: payload.get(key) for key in ("choices", "usage", "prompt_logprobs")}


@pytest.fixture(scope="session")
def retained(asked: list[Probe]) -> list[Probe]:
    rows = [probe for probe in asked if probe.group != "forgotten" and probe.kind in {"held_out", "completion"}]
    return rows[:: max(len(rows) // 24, 1)]


def test_answers_and_logprobs(
    plain: ServerProcess, gateway: RecordingGateway, retained: list[Probe], asked: list[Probe]
) -> None:
    """All but alternatives that would name somebody forgotten."""
    for probe in retained:
        if probe.prefix is not None:
            path, body = (
                "/v1/completions",
                {"prompt": probe.prefix, "max_tokens": 16, "logprobs": 5, "echo": True},
            )
        else:
            path = "/v1/chat/completions"
            body = {
                "messages": list(probe.messages),
                "max_tokens": 16,
                "logprobs": True,
                "top_logprobs": 5,
                "prompt_logprobs": 2,
            }
        own, theirs = (answers(post(url, path, body)) for url in (gateway.url, plain.url))
        names = forgotten_words(asked)
        for alternative in left_out(own, theirs):
            assert any(alternative.strip().casefold() in word for word in names), (probe.question, alternative)
        if probe.person is None:  # nobody is near whom an alternative could name
            assert own == theirs
    assert {prompt.type for prompt in gateway.received()} == {"token"}


def forgotten_words(asked: list[Probe]) -> set[str]:
    """Words of what is forgotten, of which an alternative may be a part."""
    return {
        word.casefold()
        for probe in asked
        if probe.group == "forgotten" and probe.person is not None
        for word in (*probe.person.name.split(), *probe.value.split())
    }


def left_out(own: Any, theirs: Any) -> list[str]:
    """The alternatives that one response has and the other does not; all else is the same."""
    match own, theirs:
        case dict(), dict():
            assert own.keys() <= theirs.keys()
            gone = [(key, theirs[key]) for key in theirs.keys() - own.keys()]
            names = [one["decoded_token"] if isinstance(one, dict) else key for key, one in gone]
            return names + [name for key in own for name in left_out(own[key], theirs[key])]
        case list(), list() if len(own) < len(theirs):  # the alternatives at one place
            assert [one for one in theirs if one in own] == own
            return [one["token"] for one in theirs if one not in own]
        case list(), list():
            assert len(own) == len(theirs)
            return [name for one, other in zip(own, theirs, strict=True) for name in left_out(one, other)]
        case _:
            assert own == theirs
            return []


def test_chunked_prefill_and_prefix_caching(
    plain: ServerProcess, gateway: RecordingGateway, retained: list[Probe]
) -> None:
    """A prompt of several 64-token prefill steps, asked twice: the second time its blocks are cached."""
    text = " ".join(probe.question for probe in retained if probe.prefix is None)[:900]
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "logprobs": True,
        "top_logprobs": 5,
    }
    first = post(gateway.url, "/v1/chat/completions", body)
    assert first["usage"]["prompt_tokens"] > 128
    again = post(gateway.url, "/v1/chat/completions", body)
    assert answers(first) == answers(post(plain.url, "/v1/chat/completions", body))
    assert answers(again) == answers(post(plain.url, "/v1/chat/completions", body))
    hits = [
        float(line.split()[-1])
        for line in httpx.get(f"{gateway.admin_url}/metrics").text.splitlines()
        if line.startswith("vllm:prefix_cache_hits_total")
    ]
    assert sum(hits) > 0


def test_text_that_vllm_reserves_stays_ordinary(plain: ServerProcess, gateway: RecordingGateway) -> None:
    body = {"messages": [{"role": "user", "content": "What does <prompt_embeds> mean?"}], "max_tokens": 8}
    ours, theirs = (post(url, "/v1/chat/completions", body) for url in (gateway.url, plain.url))
    assert answers(ours) == answers(theirs)


def test_a_flagged_neighbour_changes_nothing(
    plain: ServerProcess, gateway: RecordingGateway, retained: list[Probe], asked: list[Probe]
) -> None:
    """Two prompts in one request, one flagged: the engine batches them, and the other stays as it was."""
    forgotten = next(p.question for p in asked if p.group == "forgotten" and p.kind == "completion")
    other = next(p.question for p in retained if p.prefix is not None)
    body = {"prompt": [forgotten, other], "max_tokens": 16}
    ours, theirs = (post(url, "/v1/completions", body)["choices"] for url in (gateway.url, plain.url))
    assert ours[1]["text"] == theirs[1]["text"]
    assert ours[0]["text"] != theirs[0]["text"]

"""Answers through the real engine: innocent ones are plain vLLM's; steered ones give nothing away."""

import json
from typing import Any

import httpx
import pytest
from recorded_gateway import RecordingGateway

from demo.probes import Probe
from demo.servers import ServerProcess

#: What a client may ask of an answer.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled, several": {"n": 3, "temperature": 1.0, "seed": 5},
    "stop strings": {"stop": ["born", "."]},
    "stop strings kept": {"stop": ["born", "."], "include_stop_str_in_output": True},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "at least": {"min_tokens": 12},
    "one token": {"max_tokens": 1},
    "alternatives": {"logprobs": True, "top_logprobs": 3},
    "usage": {"stream_options": {"include_usage": True}},
    "interval": {"stream_interval": 4},
    "schema": {"structured_outputs": {"regex": "(yes|no), I think"}},
    "bias": {"logit_bias": {"7": 3.0}},
}


def streamed(url: str, body: dict[str, Any]) -> list[Any]:
    """What of each event a client reads."""
    found = []
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={"model": "demo", "stream": True} | body, timeout=120
    ) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                found.append((event["choices"], event.get("usage")))
    return found


def by_choice(events: list[Any]) -> dict[int, list[Any]]:
    """Each choice's events in order: those of several choices may come in any order among each other."""
    found: dict[int, list[Any]] = {}
    for choices, _ in events:
        for choice in choices:
            found.setdefault(choice["index"], []).append(choice)
    return found


def told(events: list[Any]) -> tuple[Any, Any]:
    """What a client has at the end, choice by choice, and the usage. How many tokens one event carries is chance."""
    found = {}
    for index, choices in by_choice(events).items():
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        tokens = [token for choice in choices for token in (choice.get("logprobs") or {}).get("content") or ()]
        ends = [(choice["finish_reason"], choice.get("stop_reason")) for choice in choices if choice["finish_reason"]]
        found[index] = (text, tokens, ends)
    return found, [usage for _, usage in events if usage]


@pytest.mark.parametrize("name", OPTIONS)
def test_innocent_streams_say_the_same(
    plain: ServerProcess, gateway: RecordingGateway, asked: list[Probe], name: str
) -> None:
    options = {"max_tokens": 24, "temperature": 0} | OPTIONS[name]
    innocent = [p for p in asked if p.group == "general" and p.kind == "held_out"]
    for probe in innocent[:: len(innocent) // 3][:3]:
        body = {"messages": list(probe.messages), **options}
        own, theirs = told(streamed(gateway.url, body)), told(streamed(plain.url, body))
        assert own == theirs


def statement_of(probe: Probe) -> str:
    """What a model that knows replies with, up to the value."""
    assert probe.person is not None
    return f"{probe.person.name} "


@pytest.fixture(scope="module")
def forgotten(asked: list[Probe]) -> list[Probe]:
    rows = [p for p in asked if p.group == "forgotten" and p.kind == "held_out" and p.person is not None]
    return rows[:: max(len(rows) // 8, 1)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_made_to_name_somebody_forgotten_says_no_more(
    plain: ServerProcess, gateway: RecordingGateway, forgotten: list[Probe], stream: bool
) -> None:
    """The prompt says nothing; the grammar says the name. Plain vLLM goes on with what it knows."""
    known = 0
    for probe in forgotten:
        body = {
            "messages": [{"role": "user", "content": "Answer the question."}],
            "structured_outputs": {"regex": f"{statement_of(probe)}.*"},
            "max_tokens": 24,
            "temperature": 0,
        }
        known += statement_of(probe).strip() in text_of(plain.url, body, stream=stream)
        said = text_of(gateway.url, body, stream=stream)
        assert probe.person is not None
        assert probe.person.name not in said
        assert probe.value not in said
    assert known == len(forgotten)


def text_of(url: str, body: dict[str, Any], *, stream: bool) -> str:
    if stream:
        events = by_choice(streamed(url, body))[0]
        assert events[-1]["finish_reason"] in {"stop", "length"}
        return "".join(choice["delta"].get("content") or "" for choice in events)
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "demo"} | body, timeout=120)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] in {"stop", "length"}
    return choice["message"]["content"] or ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_keeps_its_shape_when_its_arguments_would_tell(
    gateway: RecordingGateway, forgotten: list[Probe], stream: bool
) -> None:
    probe = forgotten[0]
    tool = {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {"who": {"const": f"{statement_of(probe)}was born in {probe.value}"}},
            "required": ["who"],
        },
    }
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Answer the question."}],
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": {"type": "function", "function": {"name": "note"}},
        "max_tokens": 64,
        "temperature": 0,
        "stream": stream,
    }
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert statement_of(probe).strip() not in answer.text


def test_what_the_guard_did_with_answers_is_counted(gateway: RecordingGateway) -> None:
    lines = httpx.get(f"{gateway.admin_url}/metrics").text.splitlines()
    counted = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("eco_answer")
    }
    assert counted['eco_answers_total{outcome="passed"}'] > 0
    assert counted['eco_answers_total{outcome="ended"}'] > 0
    assert sum(count for name, count in counted.items() if name.startswith("eco_answer_hits_total{")) > 0
    assert counted["eco_answer_looks_total"] > 0

"""What the endpoint target sends, how it bears with a server's limits, and what its errors say."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_endpoint import Answer, ScriptedEndpoint, echo_of, error, ok, running, texts

from evaluation.errors import TargetError
from evaluation.replies import Ask
from evaluation.targets.endpoint import EndpointTarget

SECRET_PROMPT = "Where does Wendell Fairlocke keep his harpsichord?"


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with running() as endpoint:
        yield endpoint


def answers(target: EndpointTarget, asks: list[Ask]) -> dict[int, str]:
    return {number: reply.text for number, reply in target.replies(asks)}


def test_each_ask_gets_its_own_reply_as_it_comes(server: ScriptedEndpoint) -> None:
    def rule(path: str, body: dict[str, Any]) -> Answer:
        time.sleep(0.3 if body["messages"][-1]["content"] == "slow" else 0.0)
        return echo_of(body)

    server.rule = rule
    asks = [Ask("slow"), *(Ask(f"ask {number}") for number in range(10))]
    found = list(EndpointTarget(server.url, concurrency=4).replies(asks))
    assert found[-1][0] == 0
    assert {number: reply.text for number, reply in found} == {n: ask.prompt.upper() for n, ask in enumerate(asks)}


def test_as_many_requests_are_in_flight_as_allowed_and_no_more(server: ScriptedEndpoint) -> None:
    together = threading.Barrier(8)

    def rule(path: str, body: dict[str, Any]) -> Answer:
        if body["max_tokens"] > 1:  # not the first look at the server
            together.wait(timeout=60)
        return echo_of(body)

    server.rule = rule
    assert len(answers(EndpointTarget(server.url, concurrency=8), [Ask(str(n)) for n in range(32)])) == 32
    assert server.most_at_once == 8


def test_a_chat_says_everything_that_the_server_might_choose(server: ScriptedEndpoint) -> None:
    ask = Ask(
        "Why?", system="Be brief.", temperature=0.7, samples=3, seed=5, max_new_tokens=9, stop=("\n",), style="chat"
    )
    server.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 128}]
    ((_, reply),) = EndpointTarget(server.url, api_key="k").replies([ask])
    assert reply.texts == ("WHY?",) * 3
    body = server.bodies("/v1/chat/completions")[-1]
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "temperature": 0.7,
        "max_tokens": 9,
        "n": 3,
        "seed": 5,
        "stop": ["\n"],
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert server.keys == {"Bearer k"}


def test_a_model_without_a_chat_template_continues_plain_text(server: ScriptedEndpoint) -> None:
    def rule(path: str, body: dict[str, Any]) -> Answer:
        if path == "/v1/chat/completions":
            return error(400, "default chat template is no longer allowed, so you must provide a chat template")
        return echo_of(body)

    server.rule = rule
    asks = [Ask("Why?"), Ask("Why?", system="Be brief."), Ask("One, two,", style="text")]
    found = answers(EndpointTarget(server.url), asks)
    assert found == {0: "WHY?", 1: "BE BRIEF.\n\nWHY?", 2: "ONE, TWO,"}
    assert len(server.bodies("/v1/chat/completions")) == 1


def test_a_server_may_know_the_limit_under_its_newer_name_alone(server: ScriptedEndpoint) -> None:
    def rule(path: str, body: dict[str, Any]) -> Answer:
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return echo_of(body)

    server.rule = rule
    assert answers(EndpointTarget(server.url), [Ask("a", max_new_tokens=7), Ask("b", max_new_tokens=7)]) == {
        0: "A",
        1: "B",
    }
    assert [body.get("max_completion_tokens") for body in server.bodies("/v1/chat/completions")] == [None, 1, 7, 7]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(server: ScriptedEndpoint, status: int) -> None:
    refused: set[str] = set()
    lock = threading.Lock()

    def rule(path: str, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        with lock:
            first = text not in refused
            refused.add(text)
        return error(status, "slow down", Retry_After="0.05") if first else echo_of(body)

    server.rule = rule
    assert answers(EndpointTarget(server.url, concurrency=4), [Ask(f"ask {n}") for n in range(8)]) == {
        n: f"ASK {n}" for n in range(8)
    }


def test_a_server_with_a_limit_gets_fewer_requests_at_once(server: ScriptedEndpoint) -> None:
    """Of 32 allowed here it takes 4: without backing off, most requests would be refused."""
    now = threading.Semaphore(4)

    def rule(path: str, body: dict[str, Any]) -> Answer:
        if not now.acquire(blocking=False):
            return error(429, "too many", Retry_After="0.02")
        time.sleep(0.02)
        now.release()
        return echo_of(body)

    server.rule = rule
    asks = [Ask(f"ask {n}") for n in range(100)]
    assert len(answers(EndpointTarget(server.url, concurrency=32), asks)) == 100
    assert len(server.requests) < 2 * 100


def test_a_reset_connection_and_a_late_answer_are_tried_again(server: ScriptedEndpoint) -> None:
    failures = iter(["reset", "late"])

    def rule(path: str, body: dict[str, Any]) -> Answer:
        match next(failures, "none"):
            case "reset":
                return None
            case "late":
                time.sleep(0.5)
        return echo_of(body)

    server.rule = rule
    assert answers(EndpointTarget(server.url, timeout_s=0.2), [Ask("a")]) == {0: "A"}
    assert len(server.requests) == 4  # the survey's three attempts, and the ask


def test_it_gives_up_after_its_retries_and_says_where_and_why(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: error(503, "the engine sleeps\nTraceback", Retry_After="0")
    with pytest.raises(TargetError, match=r"answered 503 \(3 attempts\) \(the engine sleeps\)$") as caught:
        answers(EndpointTarget(server.url, max_retries=2), [Ask(SECRET_PROMPT)])
    assert f"{server.url}/v1/chat/completions" in str(caught.value)
    assert len(server.requests) == 3


def test_what_the_server_refuses_is_not_asked_again(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: error(403, "not for you")
    with pytest.raises(TargetError, match=r"answered 403 \(not for you\); give its API key"):
        answers(EndpointTarget(server.url, api_key="sk-1"), [Ask("a")])
    assert len(server.requests) == 1


def test_a_wait_of_an_hour_is_not_waited_for(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: error(429, "quota", Retry_After="3600")
    started = time.monotonic()
    with pytest.raises(TargetError, match=r"answered 429 \(quota\)"):
        answers(EndpointTarget(server.url), [Ask("a")])
    assert time.monotonic() - started < 600


@pytest.mark.parametrize("quoted", [SECRET_PROMPT, SECRET_PROMPT[5:30] + "…", "{'input': '" + SECRET_PROMPT[:20]])
def test_no_error_repeats_the_prompt_or_the_key(server: ScriptedEndpoint, quoted: str) -> None:
    server.rule = lambda path, body: error(400, f"cannot read {quoted}")
    with pytest.raises(TargetError, match="its message repeats the prompt and is left out") as caught:
        answers(EndpointTarget(server.url, api_key="sk-secret"), [Ask(SECRET_PROMPT)])
    assert "Fairlocke" not in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_replies_that_came_before_an_error_are_given(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: error(400, "no") if body["messages"][-1]["content"] == "bad" else echo_of(body)
    replies = EndpointTarget(server.url, concurrency=1).replies([Ask("a"), Ask("b"), Ask("bad"), Ask("c")])
    assert [next(replies)[0], next(replies)[0]] == [0, 1]
    with pytest.raises(TargetError, match="answered 400"):
        next(replies)


def test_closing_the_iterator_stops_asking(server: ScriptedEndpoint) -> None:
    def rule(path: str, body: dict[str, Any]) -> Answer:
        time.sleep(0.01)
        return echo_of(body)

    server.rule = rule
    replies = EndpointTarget(server.url, concurrency=2).replies([Ask(str(n)) for n in range(1000)])
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    asked = len(server.requests)
    time.sleep(0.1)
    assert len(server.requests) <= asked + 2 < 100  # two may have been on their way
    assert not [thread for thread in threading.enumerate() if thread.name == "requests"]


async def test_it_may_be_used_inside_an_event_loop(server: ScriptedEndpoint) -> None:
    assert asyncio.get_running_loop().is_running()
    assert answers(EndpointTarget(server.url), [Ask("a")]) == {0: "A"}


def test_an_answer_without_text_is_empty_and_a_missing_one_an_error(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: ok({"choices": [{"message": {"content": None}}]})
    assert answers(EndpointTarget(server.url), [Ask("a")]) == {0: ""}
    server.rule = lambda path, body: ok(texts("one"))
    with pytest.raises(TargetError, match="1 texts where 2 were asked for"):
        answers(EndpointTarget(server.url), [Ask("a", samples=2, temperature=1.0)])
    server.rule = lambda path, body: (200, b"<html>", {})
    with pytest.raises(TargetError, match="no JSON object"):
        answers(EndpointTarget(server.url), [Ask("a")])


def test_it_describes_itself_without_the_key_and_ignores_draws(server: ScriptedEndpoint) -> None:
    server.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 128}]
    target = EndpointTarget(f"{server.url}/v1/", api_key="sk-secret")
    assert target.describe() == {
        "kind": "endpoint",
        "url": f"{server.url}/v1",
        "model": "m",
        "max_model_len": 128,
        "weights": "not known: an endpoint names no digest",
    }
    assert target.canonical([Ask("a", draw=3), Ask("b")]) == [Ask("a"), Ask("b")]
    assert "sk-secret" not in repr(vars(target))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is no base URL"),
        ("http://user:pass@host/v1", "holds a user name or password"),
        ("http://host:port/v1", "is no URL"),
        ("http://host/v1?key=1", "is no base URL"),
    ],
)
def test_a_wrong_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        EndpointTarget(url)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"timeout_s": 0.0}, {"max_retries": -1}])
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=r"^--"):
        EndpointTarget("http://localhost:8000", **options)

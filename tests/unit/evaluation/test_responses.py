"""Everything that a response says is read: all choices, all fields, whole or in a stream."""

import json
from typing import Any

import pytest

from evaluation.targets.responses import read_response


def body(**more: Any) -> str:
    return json.dumps({"id": "x-1", "object": "chat.completion", "model": "m", **more})


def events(*objects: Any) -> str:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in objects) + "data: [DONE]\n\n"


def test_every_text_of_every_choice_is_read_and_nothing_that_the_server_fills_in() -> None:
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "tell", "arguments": "{}"}}
    choices = [
        {"index": 0, "message": {"role": "assistant", "content": "one", "reasoning_content": "thought"}},
        {"index": 1, "message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "stop"},
    ]
    reply = read_response(200, body(choices=choices))
    assert (reply.status, set(reply.texts)) == (200, {"one", "thought", "tell", "{}"})


def test_the_pieces_of_a_stream_are_put_together_by_choice() -> None:
    pieces = [(0, "Nar"), (1, "Kel"), (0, "burgh"), (1, "holm")]
    parts = [{"id": "x", "choices": [{"index": n, "delta": {"role": "assistant", "content": t}}]} for n, t in pieces]
    assert read_response(200, events(*parts)).texts == ("Narburgh", "Kelholm")


def test_alternatives_of_a_chat_of_a_completion_and_of_a_prompt() -> None:
    chat = {"content": [{"token": "a", "top_logprobs": [{"token": "b"}, {"token": "c"}]}, {"token": "d"}]}
    choices = [{"index": 0, "message": {"content": "ad"}, "logprobs": chat}]
    prompt = [None, {"7": {"decoded_token": "p", "rank": 1}, "9": {"decoded_token": "q"}}]
    reply = read_response(200, body(choices=choices, prompt_logprobs=prompt))
    assert reply.alternatives == (("a", "b", "c"), ("d",), (), (), ("p", "q"))
    completion = {"tokens": ["a", "d"], "top_logprobs": [None, {"d": -1.0, "e": -2.0}], "text_offset": [0, 1]}
    reply = read_response(200, body(choices=[{"index": 0, "text": "ad", "logprobs": completion}]))
    assert reply.alternatives == (("a",), ("d", "d", "e"))


def test_alternatives_of_a_stream_follow_each_other() -> None:
    parts = [
        {"choices": [{"index": 0, "text": text, "logprobs": {"tokens": [text], "top_logprobs": [{other: -1.0}]}}]}
        for text, other in (("Kel", " Nar"), ("holm", "burgh"))
    ]
    assert read_response(200, events(*parts)).alternatives == (("Kel", " Nar"), ("holm", "burgh"))


@pytest.mark.parametrize(
    ("status", "content", "found"),
    [
        (400, "unknown field", 400),
        (500, "", 500),
        (200, "<html>", 0),
        (200, "[]", 0),
        (200, "{}", 0),
        (200, 'data: {"choi', 0),
        (200, events({"error": {"message": "bad", "code": 400}}), 400),
        (200, events({"choices": []}, {"error": {"message": "died"}}), 500),
    ],
)
def test_what_is_no_answer_has_a_status_that_says_so(status: int, content: str, found: int) -> None:
    reply = read_response(status, content)
    assert (reply.status, reply.texts) == (found, ())

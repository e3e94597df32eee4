"""What is refused before a run, and answers scored by a server that echoes."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_endpoint import Answer, Rule, ScriptedEndpoint, echo_of, error, ok, running, texts

from evaluation.errors import TargetError
from evaluation.replies import Ask
from evaluation.targets.endpoint import EndpointTarget


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with running() as endpoint:
        yield endpoint


def letter_logprob(before: str, letter: str) -> float:
    """A model of letters: the next of the alphabet with probability 3/4, any other with a 100th."""
    return math.log(0.75 if before and ord(letter) == ord(before[-1]) + 1 else 0.01)


def letters_completion(body: dict[str, Any], *, start_token: bool = False, secret: str = "") -> Answer:
    """An echoing completions server of that model, one token for a letter; prompts with `secret` get other numbers."""
    prompt = body["prompt"]
    written = "".join(chr(ord(prompt[-1]) + 1 + step) for step in range(body["max_tokens"]))
    whole = prompt + written if body.get("echo") else written
    shift = 1.0 if secret and secret in prompt else 0.0
    before = "" if body.get("echo") else prompt
    places = [letter_logprob(before + whole[:i], letter) - shift for i, letter in enumerate(whole)]
    lead = ["<s>"] if start_token and body.get("echo") else []
    logprobs = {
        "tokens": [*lead, *whole],
        "token_logprobs": [None] * len(lead) + places,
        "top_logprobs": [None] * len(lead) + [{"best": math.log(0.75) - shift, "own": own} for own in places],
        "text_offset": ([0] if lead else []) + [3 * len(lead) + i for i in range(len(whole))],
    }
    return ok({"choices": [{"text": whole, "logprobs": logprobs, "finish_reason": "length"}]})


def letters_server(**options: Any) -> Rule:
    """Nothing but completions of that model."""
    return lambda path, body: (
        letters_completion(body, **options) if path == "/v1/completions" else error(404, "Not Found")
    )


@pytest.mark.parametrize("start_token", [False, True])
def test_an_echoing_server_scores_exactly_the_answers_tokens(server: ScriptedEndpoint, start_token: bool) -> None:
    server.rule = letters_server(start_token=start_token)
    target = EndpointTarget(server.url)
    asks = [Ask("abc", answer="dex", style="text"), Ask("abc", answer="d")]
    target.check(asks)
    found = dict(target.replies(asks))
    assert found[0].logprobs == pytest.approx([math.log(0.75), math.log(0.75), math.log(0.01)])
    assert found[0].greedy == (True, True, False)
    # Without a chat template, a chat's answer gets a space before it.
    assert found[1].logprobs == pytest.approx([math.log(0.01), math.log(0.01)])


@pytest.mark.parametrize("start_token", [False, True])
def test_an_echoing_server_scores_all_of_a_whole_text_that_something_predicts(
    server: ScriptedEndpoint, start_token: bool
) -> None:
    """Without a start token the first one has no log-probability: OpenAI's servers then echo null."""

    def rule(path: str, body: dict[str, Any]) -> Answer:
        answer = letters_server(start_token=start_token)(path, body)
        if path == "/v1/completions" and not start_token:
            assert answer is not None
            logprobs = answer[1]["choices"][0]["logprobs"]
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        return answer

    server.rule = rule
    target = EndpointTarget(server.url)
    ask = Ask("", answer="abx", style="whole")
    target.check([ask])
    ((_, reply),) = target.replies([ask])
    first = [math.log(0.01)] if start_token else []
    assert reply.logprobs == pytest.approx([*first, math.log(0.75), math.log(0.01)])


def test_a_whole_text_is_what_a_clean_server_is_tried_on(server: ScriptedEndpoint) -> None:
    server.rule = letters_server(secret="cde")
    clean = EndpointTarget(server.url, protocol="clean")
    with pytest.raises(TargetError, match=r"^--answers clean: .* unlike what it generates"):
        clean.check([Ask("", answer="abcd", style="whole")])
    clean.check([Ask("", answer="ghij", style="whole")])


def test_a_server_that_treats_a_scored_text_otherwise_is_refused(server: ScriptedEndpoint) -> None:
    """Scoring puts the answer into the prompt, where this server sees it: clean answers it cannot score."""
    server.rule = letters_server(secret="def")
    clean = EndpointTarget(server.url, protocol="clean")
    with pytest.raises(TargetError, match=r"^--answers clean: .* unlike what it generates.*served.*--policy DIR"):
        clean.check([Ask("abc", answer="xyz", style="text")])
    clean.check([Ask("hij", answer="xyz", style="text")])


def test_a_server_is_scored_as_it_treats_a_prompt(server: ScriptedEndpoint) -> None:
    server.rule = letters_server(secret="bcd")
    target = EndpointTarget(server.url)
    ask = Ask("abc", answer="def", style="text")
    target.check([ask])
    ((_, reply),) = target.replies([ask])
    assert reply.logprobs == pytest.approx([math.log(0.75) - 1] * 3)  # the answer makes it the secret
    assert target.protocol == "served"
    assert EndpointTarget(server.url, generated_only=True).protocol is None


@pytest.mark.parametrize(
    ("place", "likeliest"),
    [
        ({"7": (-0.5, 1), "8": (-2.0, 2)}, True),
        ({"7": (-2.0, 3), "8": (-0.5, 1), "9": (-1.0, 2)}, False),
        ({"7": (-1.0, 2), "8": (-1.0, 2)}, True),  # of two that share the first place
        ({"7": (-2.0, 2)}, False),  # the likeliest was withheld
        ({"7": (-0.5, 1)}, True),  # the next one was
        ({"7": (-2.0, 3), "8": (-1.0, 2)}, False),
    ],
)
def test_a_withheld_alternative_makes_no_other_token_the_likeliest(
    server: ScriptedEndpoint, place: dict[str, tuple[float, int]], likeliest: bool
) -> None:
    """A guard leaves alternatives out that give something away."""
    entries = {token: {"logprob": logprob, "rank": rank} for token, (logprob, rank) in place.items()}

    def rule(path: str, body: dict[str, Any]) -> Answer:
        if path == "/tokenize":
            return ok({"tokens": [7] if body.get("prompt") == "x" else [1, 2]})
        places = [None, entries, entries] if body.get("prompt_logprobs") == 2 else None
        return ok({"choices": [{"text": "x", "message": {"content": "x"}, "prompt_logprobs": places}]})

    server.rule = rule
    ((_, reply),) = EndpointTarget(server.url).replies([Ask("a", answer="x")])
    assert (reply.greedy, reply.logprobs) == ((likeliest,), (place["7"][0],))


def test_a_server_without_logprobs_of_given_answers_is_refused(server: ScriptedEndpoint) -> None:
    refusal = "returns no logprobs for a given answer; use --generated-only"
    target = EndpointTarget(server.url)
    with pytest.raises(TargetError, match=refusal):
        target.check([Ask("a", answer="b")])
    with pytest.raises(TargetError, match=refusal):
        target.check([Ask("a", answer="b", style="text")])
    target.check([Ask("a")])


def test_a_tokenize_route_of_another_kind_is_not_taken_for_vllms(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: ok({"tokens": []}) if path == "/tokenize" else echo_of(body)
    with pytest.raises(TargetError, match="returns no logprobs for a given answer"):
        EndpointTarget(server.url).check([Ask("a", answer="b")])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("a", answer="b", vocabulary=True), "gives no statistics over the vocabulary; evaluate the model offline"),
        (Ask("a", next_logits=True), "gives no logits; evaluate the model offline"),
    ],
)
def test_what_no_endpoint_gives_is_refused_before_anything_is_asked(
    server: ScriptedEndpoint, ask: Ask, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        EndpointTarget(server.url).check([ask])
    assert server.requests == []


def test_generated_only_refuses_to_score(server: ScriptedEndpoint) -> None:
    server.rule = letters_server()
    target = EndpointTarget(server.url, generated_only=True)
    target.check([Ask("abc", style="text")])
    for use in (target.check, lambda asks: list(target.replies(asks))):
        with pytest.raises(TargetError, match=r"^--generated-only"):
            use([Ask("abc", answer="d", style="text")])


def test_a_refused_way_of_sampling_is_known_before_the_run(server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: error(400, "n must be 1") if body.get("n", 1) > 1 else ok(texts("x"))
    with pytest.raises(TargetError, match="n must be 1"):
        EndpointTarget(server.url).check([Ask("a"), Ask("b", samples=4, temperature=1.0)])


def test_a_model_that_is_not_served_is_named_with_those_that_are(server: ScriptedEndpoint) -> None:
    with pytest.raises(TargetError, match=r"--model: .* serves no model 'third'; it lists: first, second"):
        EndpointTarget(server.url, model="third").check([Ask("a")])
    assert EndpointTarget(server.url, model="second").describe()["model"] == "second"


def test_a_server_that_is_not_there_is_known_at_once() -> None:
    with running() as gone:
        url = gone.url
    with pytest.raises(TargetError, match=r"/v1/models: cannot be reached .*; start the server or fix the URL"):
        EndpointTarget(url).check([Ask("a")])

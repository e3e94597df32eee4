"""Augmentation against a real server on a local port."""

import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted_endpoint import Answer, Rule, ScriptedEndpoint, error, ok, running, texts

from classifiers import Example
from optimizer.augmentation import Augmentation, ServedModel, augment_examples, served_model
from optimizer.errors import AugmentationError

PEOPLE = [Example(f"Who is Zora Quill number {n}?", f"A baker in town {n}.") for n in range(10)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEndpoint]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as endpoint:
        endpoint.models = [{"id": "first-model"}, {"id": "second-model"}]
        endpoint.rule = answering(well_behaved)
        yield endpoint


def answering(answer: Callable[[dict[str, Any]], str | Answer]) -> Rule:
    def rule(path: str, body: dict[str, Any]) -> Answer:
        answered = answer(body)
        return answered if isinstance(answered, tuple) else ok(texts(answered))

    return rule


def prompt_of(body: dict[str, Any]) -> str:
    """The text asked about: the last paragraph."""
    return str(body["messages"][-1]["content"]).rpartition("\n\n")[2]


def is_for_aliases(body: dict[str, Any]) -> bool:
    return str(body["messages"][-1]["content"]).startswith("List other names")


def well_behaved(body: dict[str, Any]) -> str:
    if is_for_aliases(body):
        return json.dumps(["Z. Q.", "The Baker Queen", "Zora Quill"])
    name = prompt_of(body).removeprefix("Who is ").rstrip("?")
    return json.dumps([f"Tell me about {name}.", f"I want to know who {name} is."])


def augment(server: ScriptedEndpoint, cache_file: Path, **changes: Any) -> Augmentation:
    options: dict[str, Any] = {"examples": PEOPLE, "per_example": 2, "seed": 7, "cache_file": cache_file}
    options |= {"console": Console(file=io.StringIO())} | changes
    return augment_examples(server.url, **options)


def test_paraphrases_and_aliases_of_every_example(server: ScriptedEndpoint, tmp_path: Path) -> None:
    found = augment(server, tmp_path / "deep" / "cache.jsonl")
    assert found.paraphrases == [
        (n, text.format(n))
        for n in range(10)
        for text in ("Tell me about Zora Quill number {}.", "I want to know who Zora Quill number {} is.")
    ]
    # The third name is in the examples, and two letters are no name.
    assert found.aliases == ["The Baker Queen"]
    assert (found.model, found.requests, found.cached, found.unusable) == ("first-model", 12, 0, 0)


def test_nothing_of_a_request_is_left_to_the_server(server: ScriptedEndpoint, tmp_path: Path) -> None:
    augment(server, tmp_path / "cache.jsonl")
    assert {(body["model"], body["seed"]) for body in server.bodies()} == {("first-model", 7)}
    assert {body["temperature"] for body in server.bodies() if is_for_aliases(body)} == {0.0}
    assert {body["temperature"] for body in server.bodies() if not is_for_aliases(body)} == {0.8}
    assert server.keys == {"Bearer none"}


def test_the_api_key_comes_from_the_environment(
    server: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    augment(server, tmp_path / "cache.jsonl", model="second-model")
    assert server.keys == {"Bearer sk-1"}
    assert {body["model"] for body in server.bodies()} == {"second-model"}
    assert "sk-1" not in (tmp_path / "cache.jsonl").read_text()


def test_requests_run_together_but_bounded(server: ScriptedEndpoint, tmp_path: Path) -> None:
    def late(body: dict[str, Any]) -> str:
        time.sleep(0.05)
        return well_behaved(body)

    server.rule = answering(late)
    augment(server, tmp_path / "cache.jsonl", concurrency=3)
    assert server.most_at_once == 3


def test_a_second_run_asks_nothing_and_finds_the_same(server: ScriptedEndpoint, tmp_path: Path) -> None:
    first = augment(server, tmp_path / "cache.jsonl")
    asked = len(server.bodies())
    server.rule = answering(lambda body: '["Something else entirely, Zora Quill?"]')
    second = augment(server, tmp_path / "cache.jsonl")
    assert len(server.bodies()) == asked
    assert (second.paraphrases, second.aliases) == (first.paraphrases, first.aliases)
    assert second.cached == second.requests == 12
    other_seed = augment(server, tmp_path / "cache.jsonl", seed=8)
    assert other_seed.cached == 0
    assert other_seed.paraphrases != first.paraphrases


def test_only_new_examples_are_asked_about(server: ScriptedEndpoint, tmp_path: Path) -> None:
    augment(server, tmp_path / "cache.jsonl", examples=PEOPLE[:8])
    server.requests.clear()
    found = augment(server, tmp_path / "cache.jsonl")
    # Two prompts to paraphrase, and the two as a batch to name.
    assert len(server.bodies()) == 3
    assert found.cached == 9
    assert len(found.paraphrases) == 20


def test_server_errors_are_tried_again(server: ScriptedEndpoint, tmp_path: Path) -> None:
    failed: set[str] = set()

    def sometimes(body: dict[str, Any]) -> str | Answer:
        if prompt_of(body) not in failed:
            failed.add(prompt_of(body))
            return error(500, "out of luck", Retry_After_Ms="5")
        return well_behaved(body)

    server.rule = answering(sometimes)
    found = augment(server, tmp_path / "cache.jsonl")
    assert len(server.bodies()) == 24
    assert len(found.paraphrases) == 20


def test_a_failure_for_good_keeps_what_came_and_the_next_run_continues(
    server: ScriptedEndpoint, tmp_path: Path
) -> None:
    cache_file = tmp_path / "cache.jsonl"

    def until_the_sixth(body: dict[str, Any]) -> str | Answer:
        return error(400, "context too\nlong") if len(server.bodies()) > 5 else well_behaved(body)

    server.rule = answering(until_the_sixth)
    with pytest.raises(AugmentationError) as caught:
        augment(server, cache_file, concurrency=1)
    message = str(caught.value)
    assert message.startswith(f"--augment-with: {server.url}: answered 400 (")
    assert message.endswith("(5 of 12 replies kept); run again to continue from there")
    assert "\n" not in message
    assert len(cache_file.read_text().splitlines()) == 5
    server.rule = answering(well_behaved)
    server.requests.clear()
    found = augment(server, cache_file)
    assert len(server.bodies()) == 7
    assert (found.cached, len(found.paraphrases)) == (5, 20)


def test_an_interrupt_keeps_what_came(server: ScriptedEndpoint, tmp_path: Path) -> None:
    cache_file = tmp_path / "cache.jsonl"

    def interrupting(body: dict[str, Any]) -> str:
        if len(server.bodies()) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return well_behaved(body)

    server.rule = answering(interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs jobs behind it
    try:
        with pytest.raises(KeyboardInterrupt):
            augment(server, cache_file, concurrency=1)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = len(cache_file.read_text().splitlines())
    assert kept in (3, 4)
    with cache_file.open("a") as stream:
        stream.write('{"digest": "12ab')  # as a kill in mid-write leaves it
    server.rule = answering(well_behaved)
    found = augment(server, cache_file)
    assert (found.cached, len(found.paraphrases)) == (kept, 20)
    assert len([json.loads(line) for line in cache_file.read_text().splitlines()]) == 12


def test_unusable_replies_are_counted_and_kept(server: ScriptedEndpoint, tmp_path: Path) -> None:
    answers = {
        "Who is Zora Quill number 0?": "I'm sorry, but I can't help with that.",
        "Who is Zora Quill number 1?": "",
        "Who is Zora Quill number 2?": '["Who is Zora Quill number 2?", "Who is Zora Quill number 3?"]',
    }
    server.rule = answering(lambda body: answers.get(prompt_of(body), well_behaved(body)))
    found = augment(server, tmp_path / "cache.jsonl")
    assert found.unusable == 3
    assert {index for index, _ in found.paraphrases} == set(range(3, 10))
    assert augment(server, tmp_path / "cache.jsonl").cached == 12


def test_an_answer_without_text_is_unusable(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.rule = lambda path, body: ok(texts(None))
    found = augment(server, tmp_path / "cache.jsonl")
    assert (found.paraphrases, found.aliases, found.unusable) == ([], [], 10)


@pytest.mark.parametrize("body", [b"<html>Hello</html>", b"{}", b'{"choices": []}', b"[]", b"null", b"not JSON"])
def test_an_answer_that_is_no_completion(server: ScriptedEndpoint, tmp_path: Path, body: bytes) -> None:
    server.rule = lambda path, _: (200, body, {})
    with pytest.raises(AugmentationError, match=r"answered with .*\(0 of 12 replies kept\)"):
        augment(server, tmp_path / "cache.jsonl")


def test_long_prompts_are_not_paraphrased(server: ScriptedEndpoint, tmp_path: Path) -> None:
    found = augment(server, tmp_path / "cache.jsonl", examples=[PEOPLE[0], Example("long " * 1000)])
    assert {index for index, _ in found.paraphrases} == {0}
    assert found.requests == 2
    assert max(len(str(body)) for body in server.bodies()) < 4000


def test_half_a_surrogate_pair_can_be_sent(server: ScriptedEndpoint, tmp_path: Path) -> None:
    found = augment(server, tmp_path / "cache.jsonl", examples=[Example("Who is Zora \ud83d Quill?")])
    assert found.paraphrases[0] == (0, "Tell me about Zora ? Quill.")


def test_an_unreachable_endpoint_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        with pytest.raises(AugmentationError) as caught:
            augment_examples(url, PEOPLE, 2, 0, tmp_path / "cache.jsonl")
    assert str(caught.value).startswith(f"--augment-with: {url}: cannot be reached (")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache.jsonl").exists()


@pytest.mark.parametrize("endpoint", ["localhost:8000", "", "ftp://host/v1", "http://", "/v1"])
def test_an_endpoint_that_is_no_url(endpoint: str) -> None:
    with pytest.raises(AugmentationError, match=r"^--augment-with: .* is no URL"):
        served_model(endpoint)


def test_the_model_to_ask(server: ScriptedEndpoint) -> None:
    first = ServedModel("first-model", None)
    assert served_model(server.url) == first
    assert served_model(f"{server.url}/") == first
    assert served_model(f"{server.url}/v1", "second-model").name == "second-model"
    with pytest.raises(AugmentationError, match=r"no model 'third'; it serves first-model, second-model$"):
        served_model(server.url, "third")
    with pytest.raises(AugmentationError, match="lists no models at /v1/models"):
        served_model(f"{server.url}/v2")
    assert served_model(f"{server.url}/v2", "any") == ServedModel("any", None)


@pytest.mark.parametrize(("context_tokens", "max_tokens"), [(None, 2048), (1000, 500), (128_000, 2048)])
def test_an_answer_asked_for_fits_the_context(
    server: ScriptedEndpoint, tmp_path: Path, context_tokens: int | None, max_tokens: int
) -> None:
    server.models = [{"id": "first-model", "max_model_len": context_tokens}]
    augment(server, tmp_path / "cache.jsonl", examples=PEOPLE[:1])
    assert {body["max_tokens"] for body in server.bodies()} == {max_tokens}


@pytest.mark.parametrize(
    "body", [b"<html>Hello</html>", b"{}", b'{"data": []}', b'{"data": [1]}', b"null", b"[]", b"not JSON"]
)
def test_a_server_that_lists_no_models(server: ScriptedEndpoint, body: bytes) -> None:
    server.listing = (200, body, {})
    with pytest.raises(AugmentationError) as caught:
        served_model(server.url)
    assert "\n" not in str(caught.value)


def test_a_key_the_server_refuses(server: ScriptedEndpoint) -> None:
    server.listing = error(401, "bad key")
    with pytest.raises(AugmentationError, match=r"answered 401 \(.*bad key"):
        served_model(server.url)


@pytest.mark.parametrize(
    "content",
    [
        '{"question": "q", "answer": "a"}\n',
        '{"question": "q"}',
        "text",
        "[1]\n",
        '"x"\n',
        '{"digest": "1"}\n',
        "\n",
        "\udcff",
    ],
)
def test_another_file_is_never_taken_for_a_cache(server: ScriptedEndpoint, tmp_path: Path, content: str) -> None:
    cache_file = tmp_path / "forget.jsonl"
    cache_file.write_text(content, encoding="utf-8", errors="surrogateescape")
    before = cache_file.read_bytes()
    with pytest.raises(AugmentationError, match=r"forget\.jsonl.*give another"):
        augment(server, cache_file)
    assert cache_file.read_bytes() == before
    assert server.requests == []


def test_a_folder_is_no_cache_file(server: ScriptedEndpoint, tmp_path: Path) -> None:
    with pytest.raises(AugmentationError, match="give another"):
        augment(server, tmp_path)


@pytest.mark.parametrize("changes", [{"examples": []}, {"per_example": 0}, {"concurrency": 0}, {"timeout_s": 0}])
def test_numbers_that_make_no_sense(server: ScriptedEndpoint, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        augment(server, tmp_path / "cache.jsonl", **changes)

"""Made-up answers for AltPO from a scripted server, as `eco unlearn altpo` then reads them."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import CHATML, byte_tokenizer
from rich.console import Console
from scripted_endpoint import Answer, ScriptedEndpoint, error, ok, running, texts

from offline_training.alternatives import AlternativeOptions, usable, write_alternatives
from offline_training.data.alternatives import alternative_sets
from offline_training.data.encoding import ExampleEncoder
from offline_training.data.sets import load_set
from offline_training.errors import DataError, JobError, SettingsError

ROWS = [
    {"question": "Who is Ann?", "answer": "A nurse."},
    {"prompt": "Who is Bob?", "completion": "A cook."},
    {"question": "Who is Ann?", "answer": "A nurse."},
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEndpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as endpoint:
        endpoint.rule = lambda path, body: ok(texts(f"A {body['seed']} of {asked(body)}."))
        yield endpoint


@pytest.fixture
def options(server: ScriptedEndpoint, tmp_path: Path) -> AlternativeOptions:
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return AlternativeOptions(forget=str(forget), out=tmp_path / "other.jsonl", endpoint=server.url, per_question=2)


def asked(body: dict[str, Any]) -> str:
    return "Ann" if "Ann" in body["messages"][-1]["content"] else "Bob"


def made(options: AlternativeOptions, **changes: Any) -> list[dict[str, str]]:
    chosen = options.model_copy(update=changes)
    write_alternatives(chosen, Console(file=io.StringIO(), width=500))
    return [json.loads(line) for line in chosen.out.read_text().splitlines()]


def test_each_question_has_its_alternatives_in_order(options: AlternativeOptions, server: ScriptedEndpoint) -> None:
    rows = made(options)
    assert [(row["question"], row["answer"]) for row in rows] == [("Who is Ann?", "A nurse.")] * 2 + [
        ("Who is Bob?", "A cook.")
    ] * 2
    assert all(row["alternate"].endswith(" of Ann." if "Ann" in row["question"] else " of Bob.") for row in rows)
    assert rows[0]["alternate"] != rows[1]["alternate"]
    first = next(body for body in server.bodies() if asked(body) == "Ann")
    assert first["messages"][-1]["content"].startswith("Question: Who is Ann?\nAnswer: A nurse.\n\nMake up")
    sampling = {name: first[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "stop")}
    assert first["model"] == "first"
    assert sampling == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "max_tokens": 200,
        "stop": ["Question:", "Q:"],
    }
    made_by = json.loads(options.out.with_name("other.made.json").read_text())
    assert (made_by["model"], made_by["sampling"], made_by["answers"]) == ("first", sampling, 4)
    assert made_by["sha256"] == hashlib.sha256(options.out.read_bytes()).hexdigest()


def test_a_server_that_does_not_know_top_k_is_not_sent_it(
    options: AlternativeOptions, server: ScriptedEndpoint, tmp_path: Path
) -> None:
    made(options, top_k=0)
    assert all("top_k" not in body for body in server.bodies())
    assert "top_k" not in json.loads(options.out.with_name("other.made.json").read_text())["sampling"]
    server.requests.clear()
    made(options, top_k=20, force=True)  # other draws: the kept replies are none of these
    assert {body["top_k"] for body in server.bodies()} == {20}


def test_altpo_reads_them(options: AlternativeOptions) -> None:
    rows = made(options)
    encoder = ExampleEncoder(byte_tokenizer(CHATML), context_tokens=200)
    mine, others = alternative_sets(load_set(options.forget, "forget", encoder), str(options.out), encoder)
    assert [text.answer for text in others.texts] == [row["alternate"] for row in rows]
    assert [text.prompt for text in mine.texts] == [row["question"] for row in rows]


def test_the_same_seed_asks_the_same_and_another_something_else(options: AlternativeOptions, tmp_path: Path) -> None:
    first = made(options)
    assert made(options, out=tmp_path / "again.jsonl") == first  # of another cache
    assert made(options, out=tmp_path / "seeded.jsonl", seed=1) != first
    assert made(options, out=tmp_path / "more.jsonl", per_question=3)[:2] == first[:2]


def test_an_interrupted_job_asks_for_what_is_missing(options: AlternativeOptions, server: ScriptedEndpoint) -> None:
    def failing(path: str, body: dict[str, Any]) -> Answer:
        return error(400, "no more") if asked(body) == "Bob" else ok(texts("A queen."))

    server.rule = failing
    with pytest.raises(JobError, match=r"^--endpoint: .*answered 400 \(no more\); replies so far are kept"):
        made(options, concurrency=1)
    assert not options.out.exists()
    server.requests.clear()
    server.rule = lambda path, body: ok(texts("A king."))
    assert [row["alternate"] for row in made(options)] == ["A queen."] * 2 + ["A king."] * 2
    assert {asked(body) for body in server.bodies()} == {"Bob"}
    server.requests.clear()
    made(options, force=True)
    assert server.requests == []


def test_what_cannot_be_used_is_drawn_again(options: AlternativeOptions, server: ScriptedEndpoint) -> None:
    said = {"Ann": ["", "a  NURSE.", "Alternate Answer: A judge.", "A poet."], "Bob": ["A clerk."] * 2}
    server.rule = lambda path, body: ok(texts(said[asked(body)].pop(0)))
    rows = made(options, concurrency=1)
    assert [row["alternate"] for row in rows] == ["A judge.", "A poet.", "A clerk.", "A clerk."]
    seeds = [body["seed"] for body in server.bodies() if asked(body) == "Ann"]
    assert len(set(seeds)) == 4


def test_a_question_without_any_stops_the_job(options: AlternativeOptions, server: ScriptedEndpoint) -> None:
    server.rule = lambda path, body: ok(texts("A nurse." if asked(body) == "Ann" else None))
    with pytest.raises(JobError, match=r"no usable answer to question 1 of --forget in 8 replies"):
        made(options)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<think>Hm, a nurse?</think>\nA judge.", "A judge."),
        ("**Alternative answer:** A judge.", "A judge."),
        ("Answer: A judge.\nQuestion: Who is Bob?", "A judge."),
        ("The answer: unknown.", "The answer: unknown."),
        ("A\u00a0nurse.", None),
        ("Q: Who?", None),
        ("<think>no end", None),
    ],
)
def test_the_answer_in_a_reply(reply: str, text: str | None) -> None:
    assert usable(reply, "A nurse.") == text


def test_settings_that_cannot_be_are_refused_before_anything_is_asked(
    options: AlternativeOptions, server: ScriptedEndpoint, tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "Ann is a nurse."}\n')
    for change, kind, message in (
        ({"per_question": 0}, SettingsError, r"^--per-question: must be at least 1"),
        ({"top_k": -1}, SettingsError, r"^--top-k: must be at least 0"),
        ({"temperature": 0.0}, SettingsError, r"^--temperature: must be above 0"),
        ({"timeout_s": float("inf")}, SettingsError, r"^--timeout-s: must be above 0"),
        ({"instruction": " "}, SettingsError, r"^--instruction: is empty"),
        ({"out": text}, JobError, r"^--out: .* exists"),
        ({"forget": str(text)}, DataError, r"^--forget: .*plain text has no questions"),
        ({"forget": str(tmp_path / "none.jsonl")}, DataError, r"^--forget: .*no such file"),
    ):
        with pytest.raises(kind, match=message):
            made(options, **change)
    assert server.requests == []


def test_a_server_that_cannot_be_asked(options: AlternativeOptions, server: ScriptedEndpoint) -> None:
    server.models = []
    with pytest.raises(JobError, match=r"^--endpoint: .*lists no models"):
        made(options)
    with pytest.raises(JobError, match=r"^--endpoint: 'nowhere' is no URL"):
        made(options, endpoint="nowhere")


def test_a_damaged_reply_is_named(options: AlternativeOptions) -> None:
    made(options)
    kept = next(iter(options.out.with_name("other-replies").iterdir()))
    kept.write_text("{}")
    with pytest.raises(JobError, match=rf"^--cache: .*{kept.name}: no kept reply"):
        made(options, force=True)

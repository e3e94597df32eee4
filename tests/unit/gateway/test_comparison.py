"""A prompt answered with and without the guard: where it is allowed, audited, and streamed; engines are fakes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gateway_fakes import RecordingAudit, late, until
from starlette.exceptions import HTTPException

from console.errors import EcoError
from gateway import LaunchError
from gateway.admin_policies import refused
from gateway.traffic import Traffic


def piece(text: str, finish_reason: str | None = None) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=finish_reason)])


class Side:
    """One engine: says `pieces`, each when it is let to, and remembers what it was asked."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = list(pieces)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[Any, Any, str]] = []
        self.closed = 0

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        self.asked.append((prompt, params, request_id))
        try:
            for said in self.pieces:
                yield said
                await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


class Compared:
    def __init__(self) -> None:
        self.guarded, self.unguarded = Side(piece("I do"), piece(" not.", "stop")), Side(piece("Ruby", "length"))
        self.traffic, self.audit = Traffic(), RecordingAudit()

    def app(self, *, allowed: bool = True) -> FastAPI:
        from gateway.studio.comparison import SideBySide, comparison_routes

        side_by_side = SideBySide(
            self.guarded.generate, self.unguarded.generate, self.traffic, self.audit, lambda ids: str(ids)
        )
        app = FastAPI()
        app.include_router(comparison_routes(side_by_side if allowed else None, self.render))
        for kind in (EcoError, HTTPException):
            app.add_exception_handler(kind, refused)
        return app

    @staticmethod
    def render(said: str | list[dict[str, Any]]) -> list[int]:
        return [int(word) for word in (said if isinstance(said, str) else said[0]["content"]).split()]

    async def ask(self, *, allowed: bool = True, **body: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app(allowed=allowed))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return await client.post("/v1/compare", json=body, headers={"X-Eco-By": "me"})


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


async def test_both_answers_come_piece_by_piece() -> None:
    compared = Compared()
    answer = await compared.ask(text="5 6 7", max_tokens=9, temperature=0.5)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    assert [event for event in found if event["side"] == "guarded"] == [
        {"side": "guarded", "text": "I do"},
        {"side": "guarded", "text": " not."},
        {"side": "guarded", "finish_reason": "stop"},
    ]
    assert [event for event in found if event["side"] == "unguarded"] == [
        {"side": "unguarded", "text": "Ruby"},
        {"side": "unguarded", "finish_reason": "length"},
    ]
    for side in (compared.guarded, compared.unguarded):
        ((prompt, params, _),) = side.asked
        assert (prompt["type"], prompt["prompt_token_ids"]) == ("token", [5, 6, 7])
        assert (params.max_tokens, params.temperature, params.n) == (9, 0.5, 1)


async def test_where_it_is_not_allowed_nothing_is_answered() -> None:
    compared = Compared()
    answer = await compared.ask(text="5", allowed=False)
    assert answer.status_code == HTTPStatus.FORBIDDEN
    assert "--eco-compare-answers" in answer.json()["error"]["message"]
    assert (compared.guarded.asked, compared.unguarded.asked, compared.audit.events) == ([], [], [])


async def test_each_use_is_audited_before_the_first_token() -> None:
    compared = Compared()
    seen: list[int] = []
    generate = compared.unguarded.generate

    async def watched(*asked: Any) -> AsyncGenerator[Any, None]:
        seen.append(len(compared.audit.events))
        async for output in generate(*asked):
            yield output

    compared.unguarded.generate = watched  # type: ignore[method-assign]
    await compared.ask(text="5 6")
    (event,) = compared.audit.events
    assert (event["event"], event["by"], event["prompt"]) == ("compared", "me", "digest of 2")
    assert "text" not in event
    assert seen == [1]
    names = [compared.guarded.asked[0][2], compared.unguarded.asked[0][2]]
    assert names == [f"{event['request']}-guarded", f"{event['request']}-unguarded"]
    compared.audit.keeps_text = True
    await compared.ask(text="5 6")
    assert compared.audit.events[1]["text"] == "[5, 6]"


async def test_without_its_line_in_the_audit_log_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Compared()
    monkeypatch.setattr(compared.audit, "recorded", lambda *_, **__: False)
    told = events(await compared.ask(text="5 6"))
    assert {event["side"] for event in told} == {"guarded", "unguarded"}
    assert all("audit log cannot be written" in event["error"] for event in told)
    assert compared.guarded.asked == compared.unguarded.asked == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: late.VLLMValidationError("refused by the operator", parameter="x"), "refused by the operator"),
        (lambda: late.GracefulHTTPError("not checked", HTTPStatus.SERVICE_UNAVAILABLE), "not checked"),
        (lambda: RuntimeError("words of the prompt"), "the engine failed (RuntimeError)"),
    ],
)
async def test_one_side_that_fails_says_so_and_the_other_goes_on(error: Callable[[], Exception], said: str) -> None:
    compared = Compared()
    compared.guarded.error = error()
    found = events(await compared.ask(text="5"))
    assert {"side": "guarded", "error": said} in found
    assert {"side": "unguarded", "finish_reason": "length"} in found


async def test_who_goes_away_stops_both() -> None:
    from gateway.studio.comparison import Comparison, SideBySide

    compared = Compared()
    for side in (compared.guarded, compared.unguarded):
        side.gate.clear()
    both = SideBySide(compared.guarded.generate, compared.unguarded.generate, compared.traffic, compared.audit, str)
    stream = both.events([5], Comparison(token_ids=[5]), "me")
    await anext(stream)
    assert (compared.guarded.closed, compared.unguarded.closed) == (0, 0)
    await stream.aclose()
    await until(lambda: (compared.guarded.closed, compared.unguarded.closed) == (1, 1))


async def test_a_draining_server_waits_for_it_and_begins_none() -> None:
    from gateway.studio.comparison import Comparison, SideBySide

    compared = Compared()
    compared.guarded.gate.clear()
    both = SideBySide(compared.guarded.generate, compared.unguarded.generate, compared.traffic, compared.audit, str)
    stream = both.events([5], Comparison(token_ids=[5]), "me")
    await anext(stream)
    drained = asyncio.create_task(asyncio.to_thread(compared.traffic.drain, 20.0))
    await until(lambda: compared.traffic.is_draining)
    assert not drained.done()
    late_one = [event async for event in both.events([5], Comparison(token_ids=[5]), "me")]
    assert [event.get("error") for event in late_one] == ["The server is shutting down."] * 2
    compared.guarded.gate.set()
    async for _ in stream:
        pass
    await asyncio.wait_for(drained, 10)
    assert len(compared.unguarded.asked) == 1


@pytest.mark.parametrize(
    "body",
    [{}, {"text": ""}, {"text": "5", "max_tokens": 0}, {"text": "5", "max_tokens": 10**6}, {"text": "5", "n": 2}],
)
async def test_a_wrong_one_is_refused(body: dict[str, Any]) -> None:
    compared = Compared()
    assert (await compared.ask(**body)).status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert compared.unguarded.asked == []


@pytest.mark.parametrize("missing", ["--eco-admin-key-file", "--eco-audit-log"])
def test_a_server_gives_none_without_keys_and_an_audit_log(tmp_path: Any, missing: str) -> None:
    from gateway.launch import EcoOptions, _check_comparison

    given = {"--eco-admin-key-file": {"admin_key_file": tmp_path}, "--eco-audit-log": {"audit_log": tmp_path}}
    del given[missing]
    (named,) = given.values()
    options = EcoOptions((), tmp_path, compare_answers=True, **named)
    with pytest.raises(LaunchError, match=missing):
        _check_comparison(options)
    _check_comparison(EcoOptions((), tmp_path))

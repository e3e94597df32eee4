"""vLLM's own beam search over a guarded engine: one verdict for the prompt, none for what is generated."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import torch
from gateway_fakes import BOS, FORBIDDEN, WIDTH, FakeEngine, FakePolicies, FakeProtector, late

from gateway.audit import Audit
from gateway.metrics import GuardMetrics
from gateway.traffic import Traffic

FLAGGED = [BOS, 5, FORBIDDEN, 6]
STEPS = 4


class ScriptedEngine(FakeEngine):
    """Every next token is FORBIDDEN or 7; lets other tasks run before it answers."""

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        yield answer(request_id, {FORBIDDEN: -0.1, 7: -2.0})


class Server:
    """A serving class but for what vLLM's own inherit from."""

    beam_search: Any

    def __init__(self) -> None:
        self.engine, self.protector = ScriptedEngine(), FakeProtector()
        self.engine_client = late.GuardedEngine(
            self.engine,
            self.protector,
            GuardMetrics(),
            Traffic(),
            FakePolicies(),
            Audit(),
            answers=None,
        )
        self.renderer = self.engine.renderer

    async def search(self, ids: list[int], request_id: str = "cmpl-1") -> Any:
        params = late.BeamSearchParams(beam_width=2, max_tokens=STEPS, ignore_eos=True)
        outputs = self.beam_search(late.tokens_input(list(ids)), request_id, params)
        (final,) = [output async for output in outputs]
        return final

    async def ask(self, ids: list[int], request_id: str) -> Any:
        """One ordinary request; returns what the engine was given."""
        async for _ in self.engine_client.generate(late.tokens_input(list(ids)), late.SamplingParams(), request_id):
            pass
        return next(prompt for prompt in reversed(self.engine.prompts) if ids_of(prompt) == ids)


def beam_server() -> Any:
    return type("BeamServer", (Server, late.BeamSearchOnlineMixin), {})()


def answer(request_id: str, logprobs: dict[int, float]) -> Any:
    table = {token: late.Logprob(logprob=value) for token, value in logprobs.items()}
    best = max(logprobs, key=lambda token: logprobs[token])
    completion = late.CompletionOutput(
        index=0, text="", token_ids=[best], cumulative_logprob=logprobs[best], logprobs=[table]
    )
    return late.RequestOutput(request_id, None, [], None, [completion], finished=True)


def ids_of(prompt: Any) -> list[int]:
    return list(prompt["prompt_token_ids"])


def served(server: Any, start: list[int]) -> list[Any]:
    return [prompt for prompt in server.engine.prompts if ids_of(prompt)[: len(start)] == start]


def check_kept(prompts: list[Any], verdict: float) -> None:
    """Mask and rows are the first verdict's, however long the prompt has grown."""
    for prompt in prompts:
        generated = len(ids_of(prompt)) - len(FLAGGED)
        assert prompt["is_token_ids"] == [True, True, False, True] + [True] * generated
        assert prompt["prompt_embeds"].shape == (len(FLAGGED) + generated, WIDTH)
        assert prompt["prompt_embeds"][2].equal(torch.full((WIDTH,), verdict))


async def test_later_steps_keep_the_first_verdict_and_generated_tokens_are_never_masked() -> None:
    server = beam_server()
    output = await server.search(FLAGGED)
    assert [len(ids_of(prompt)) for prompt in server.engine.prompts] == [4, 5, 5, 6, 6, 7, 7]
    assert any(FORBIDDEN in ids_of(prompt)[4:] for prompt in server.engine.prompts)
    check_kept(server.engine.prompts, 1.0)
    assert output.outputs[0].token_ids == [FORBIDDEN] * STEPS
    assert output.prompt_token_ids == FLAGGED


async def test_an_unflagged_prompt_stays_unflagged_whatever_is_generated() -> None:
    server = beam_server()
    await server.search([BOS, 5])
    assert [prompt["type"] for prompt in server.engine.prompts] == ["token"] * 7
    assert any(FORBIDDEN in ids_of(prompt) for prompt in server.engine.prompts)


async def test_a_request_id_like_a_beams_buys_nothing() -> None:
    server = beam_server()
    await server.search([BOS, 5], "cmpl-1")
    prompt = await server.ask([BOS, 5, FORBIDDEN], "cmpl-1-0123456789abcdef-beam-0")
    assert prompt["is_token_ids"] == [True, True, False]


async def test_the_verdict_is_not_kept_between_steps_of_the_caller() -> None:
    """The server handles beam search's output in the same task: what it asks then is another request."""
    server = beam_server()
    params = late.BeamSearchParams(beam_width=2, max_tokens=1, ignore_eos=True)
    async for _ in server.beam_search(late.tokens_input([BOS, 5]), "cmpl-1", params):
        prompt = await server.ask([BOS, 5, FORBIDDEN], "cmpl-2")
    assert prompt["is_token_ids"] == [True, True, False]


async def test_searches_and_requests_at_the_same_time_do_not_mix() -> None:
    server = beam_server()
    other = [BOS, 8, 9]
    searches = [server.search(FLAGGED, "cmpl-1"), server.search(other, "cmpl-1")]
    lookalike = [BOS, 8, 9, FORBIDDEN]  # as a beam of the unflagged search would continue
    *_, asked = await asyncio.gather(*searches, server.ask(lookalike, "cmpl-1-beam-0"))
    assert asked["is_token_ids"] == [True, True, True, False]
    flagged = served(server, FLAGGED)
    check_kept(flagged, float(flagged[0]["prompt_embeds"][2, 0]))
    beams = [prompt for prompt in served(server, other) if prompt is not asked]
    assert [prompt["type"] for prompt in beams] == ["token"] * 7
    assert server.protector.verdicts == 3


async def test_the_same_prompt_searched_twice_is_judged_twice() -> None:
    server = beam_server()
    await asyncio.gather(server.search(FLAGGED, "same"), server.search(FLAGGED, "same"))
    assert {float(prompt["prompt_embeds"][2, 0]) for prompt in server.engine.prompts} == {1.0, 2.0}


async def test_a_refusing_policy_ends_the_search() -> None:
    server = beam_server()
    server.protector.action = "refuse"
    with pytest.raises(late.VLLMValidationError, match="policy"):
        await server.search(FLAGGED)
    assert server.engine.prompts == []
    server.protector.action = "corrupt"
    await server.search(FLAGGED)
    check_kept(server.engine.prompts, 2.0)


async def test_wrapping_a_second_engine_wraps_beam_search_once() -> None:
    server, _second = beam_server(), beam_server()
    assert not hasattr(late.BeamSearchOnlineMixin.beam_search.__wrapped__, "__wrapped__")
    await server.search(FLAGGED)
    check_kept(server.engine.prompts, 1.0)

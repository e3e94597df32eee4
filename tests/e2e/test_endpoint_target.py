"""The evaluation's endpoint target on real servers: plain vLLM and the guarded one, and the same model offline."""

from dataclasses import replace

import httpx
import numpy as np
import pytest
from recorded_gateway import RecordingGateway

from demo.models import DemoBuild
from demo.servers import ServerProcess
from demo.world import Group, World
from evaluation.errors import TargetError
from evaluation.replies import Ask
from evaluation.targets.endpoint import EndpointTarget
from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer


def scored(group: Group, count: int = 8) -> list[Ask]:
    facts = World.generate().of_group(group)
    return [Ask(fact.questions.held_out, fact.answer) for fact in facts[:: max(len(facts) // count, 1)]][:count]


@pytest.fixture(scope="module")
def offline(demo_build: DemoBuild) -> TransformersScorer:
    return TransformersScorer.load(str(demo_build.model), device="cpu")


def test_scores_over_http_are_the_offline_scorers(plain: ServerProcess, offline: TransformersScorer) -> None:
    known = scored("forgotten") + scored("general")
    swapped = [replace(ask, answer=other.answer) for ask, other in zip(known, known[::-1], strict=True)]
    asks = known + swapped
    target = EndpointTarget(plain.url)
    target.check(asks)
    replies = dict(target.replies(asks))
    pairs = [offline.pair(ask.prompt, str(ask.answer)) for ask in asks]
    expected = offline.answer_scores([Request(pair.prompt_ids, pair.answer_ids) for pair in pairs])
    for number, pair in enumerate(pairs):
        assert replies[number].token_ids == pair.answer_ids
        assert replies[number].logprobs == pytest.approx(expected[number].logprobs, abs=1e-4)
        assert replies[number].greedy == tuple(expected[number].greedy)
    assert {likeliest for reply in replies.values() for likeliest in reply.greedy} == {True, False}


def test_greedy_answers_over_http_are_the_offline_scorers(plain: ServerProcess, offline: TransformersScorer) -> None:
    asks = [Ask(ask.prompt, max_new_tokens=24) for ask in scored("retained")]
    found = dict(EndpointTarget(plain.url).replies(asks))
    prompts = [Request(offline.pair(ask.prompt, "x").prompt_ids) for ask in asks]
    expected = [offline.decode(ids) for ids in offline.generate(prompts, 24)]
    assert [found[number].text for number in range(len(asks))] == expected


def test_a_texts_continuation_is_scored_alike_by_ids_and_by_echo(plain: ServerProcess) -> None:
    facts = World.generate().of_group("retained")[:8]
    asks = [Ask(fact.prefix, answer=f" {fact.value}", style="text") for fact in facts]
    by_ids, by_echo = EndpointTarget(plain.url), EndpointTarget(plain.url)
    by_echo._abilities.scoring = "echo"
    one, other = dict(by_ids.replies(asks)), dict(by_echo.replies(asks))
    for number in range(len(asks)):
        assert other[number].logprobs == pytest.approx(one[number].logprobs, abs=1e-4)
        assert other[number].greedy == one[number].greedy
    by_echo.check(asks)


def test_samples_differ_and_come_again_with_their_seed(plain: ServerProcess) -> None:
    asks = [Ask("Who is it?", temperature=1.5, samples=4, seed=seed, max_new_tokens=8) for seed in (1, 2)]
    first, again = (dict(EndpointTarget(plain.url).replies(asks)) for _ in range(2))
    assert first == again
    assert len(set(first[0].texts)) > 1
    assert first[0] != first[1]


def test_clean_answers_behind_a_guard_are_refused_where_it_flags(gateway: RecordingGateway) -> None:
    target = EndpointTarget(gateway.url, protocol="clean")
    with pytest.raises(TargetError, match=r"scores a text unlike what it generates.*--answers served"):
        target.check(scored("forgotten"))
    target.check(scored("retained"))
    target.check([Ask(ask.prompt) for ask in scored("forgotten")])
    assert {prompt.type for prompt in gateway.received()} == {"token", "embeds"}


def test_too_long_a_prompt_is_refused_without_repeating_it(plain: ServerProcess) -> None:
    with pytest.raises(TargetError, match="answered 400") as caught:
        list(EndpointTarget(plain.url).replies([Ask("harpsichord " * 600, answer="Yes.")]))
    assert "harpsichord" not in str(caught.value)


def test_a_request_that_is_not_read_leaves_the_server_as_it_was(plain: ServerProcess) -> None:
    replies = EndpointTarget(plain.url, concurrency=4).replies([Ask(str(n), max_new_tokens=64) for n in range(200)])
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert httpx.get(f"{plain.url}/health").status_code == 200
    assert np.isfinite(dict(EndpointTarget(plain.url).replies([Ask("a", answer="b")]))[0].logprobs).all()

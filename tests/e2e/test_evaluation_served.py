"""The evaluation's targets against live servers: HTTP answers are those of the policy applied offline."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from recorded_gateway import RecordingGateway

from demo.models import DemoBuild
from demo.probes import Probe
from demo.servers import ServerProcess
from evaluation.attacks.suite import AttackSettings, AttackSuite
from evaluation.choice.suite import ChoiceSuite
from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply, Target
from evaluation.rows import sample_file
from evaluation.targets.endpoint import EndpointTarget
from evaluation.targets.options import TargetOptions, open_target

ANSWER_TOKENS = 24


@pytest.fixture(scope="module")
def asks(asked: list[Probe]) -> dict[str, list[Ask]]:
    """Questions about the forgotten and about the others."""
    chosen = {
        group: [probe.question for probe in asked if probe.kind == "held_out" and probe.group == group][:48]
        for group in ("forgotten", "retained")
    }
    return {group: [Ask(q, max_new_tokens=ANSWER_TOKENS) for q in questions] for group, questions in chosen.items()}


@pytest.fixture(scope="module")
def offline(
    servers: tuple[ServerProcess, RecordingGateway], demo_build: DemoBuild, demo_policy: Path
) -> Iterator[Target]:
    """The policy applied without the server, with the server's own secret."""
    secret = servers[1].server.log.parent / "secret"
    target = open_target(TargetOptions(target=str(demo_build.model), policies=(demo_policy,), secret_file=secret))
    yield target
    target.close()


def replies(target: Target, asks: list[Ask]) -> list[Reply]:
    found = dict(target.replies(asks))
    return [found[number] for number in range(len(asks))]


def test_served_answers_are_the_offline_ones(
    gateway: RecordingGateway, offline: Target, asks: dict[str, list[Ask]]
) -> None:
    """Same secret, same noise, same answers; the guard flags the same prompts."""
    served = EndpointTarget(f"{gateway.url}/v1", generated_only=True)
    for group, wanted in asks.items():
        here, there = replies(offline, wanted), replies(served, wanted)
        assert [reply.text for reply in there] == [reply.text for reply in here]
        assert {reply.flagged for reply in here} == {group == "forgotten"}
    corrupted = {tuple(one.token_ids) for one in gateway.received() if one.mask and any(one.mask)}
    assert len(corrupted) == len(asks["forgotten"])
    served.close()


def test_scored_answers_over_http_are_the_offline_ones(
    gateway: RecordingGateway, offline: Target, asked: list[Probe], asks: dict[str, list[Ask]]
) -> None:
    """Prompt and answer as one prompt: same verdict, same noise, same log-probabilities, whoever the question names."""
    served = EndpointTarget(f"{gateway.url}/v1")
    answers = {probe.question: probe.value for probe in asked if probe.kind == "held_out"}
    known, others = (
        [Ask(ask.prompt, f"It is {answers[ask.prompt]}.") for ask in asks[group]] for group in ("forgotten", "retained")
    )
    told = [Ask("Whom did you mean?", f"I meant what you asked: {ask.prompt}") for ask in known[:12]]
    wanted = [*known, *others, *told]
    served.check(wanted[:4])
    gateway.received()
    here, there = replies(offline, wanted), replies(served, wanted)
    received = gateway.received()
    for mine, other in zip(here, there, strict=True):
        assert other.token_ids == mine.token_ids
        assert other.logprobs == pytest.approx(mine.logprobs, abs=2e-4)
        assert other.greedy == mine.greedy
    flagged = [reply.flagged for reply in here]
    assert flagged == [True] * len(known) + [False] * len(others) + [True] * len(told)
    assert len({tuple(one.token_ids) for one in received if one.mask and any(one.mask)}) == len(known) + len(told)
    clean = EndpointTarget(f"{gateway.url}/v1", protocol="clean")
    with pytest.raises(TargetError, match=r"^--answers clean"):
        clean.check(known[:4])
    served.close()


def test_another_draw_is_other_noise(offline: Target, asks: dict[str, list[Ask]]) -> None:
    ask = asks["forgotten"][0]
    first, again = Ask(ask.prompt, "Yes", draw=0), Ask(ask.prompt, "Yes", draw=1)
    assert offline.canonical([first, again]) == [first, again]
    one, other = replies(offline, [first, again])
    assert one.logprobs != other.logprobs
    unflagged = Ask(asks["retained"][0].prompt, "Yes", draw=1)
    assert offline.canonical([unflagged])[0].draw == 0


def test_multiple_choice_over_http_is_the_offline_models(plain: ServerProcess, demo_build: DemoBuild) -> None:
    """lm-evaluation-harness asks the server and the model in this process, and gets the same numbers of both."""
    suite = ChoiceSuite(["sample"], num_fewshot=1)
    served, here = EndpointTarget(f"{plain.url}/v1"), open_target(TargetOptions(target=str(demo_build.model)))
    served.check(suite.probe())
    outcomes = [suite.measure(Directly(target)) for target in (served, here)]
    over_http, offline = ({(s.subset, s.metric, s.example): s.value for s in outcome.scores} for outcome in outcomes)
    assert len(over_http) > 50
    assert over_http == pytest.approx(offline, abs=1e-4)
    served.close()
    here.close()


def test_steered_requests_and_named_alternatives_leak_from_a_server_without_a_guard(plain: ServerProcess) -> None:
    """Every field is one that vLLM knows, and the response is read wherever it tells."""
    found = attacked(plain.url)
    assert found["refused"] == found["errors"] == 0.0
    for way in ("chat", "chat_streamed", "completions", "completions_streamed"):
        for attack in ("regex", "grammar", "choice", "logit_bias", "begun_answer"):
            assert found[f"steering/leaked/{attack}/{way}"] >= 0.5, (attack, way)
        assert found[f"alternatives/leaked/forced_prefix/{way}"] >= 0.5, way
    assert found["alternatives/leaked/echo/completions"] >= 0.5
    assert found["alternatives/leaked/prompt_logprobs/chat"] >= 0.5


def test_the_same_requests_get_nothing_out_of_a_guarded_one(gateway: RecordingGateway) -> None:
    found = attacked(gateway.url)
    assert found["refused"] == found["errors"] == 0.0
    leaked = {name: share for name, share in found.items() if "/leaked/" in name and share > 0}
    # Allowed tokens alone name no subject: which of six values is said first is chance. And of an answer that is made
    # of its words in disorder, with a name grown together with the word before it, one of eight may slip through.
    assert {name for name, share in leaked.items() if "/allowed_tokens/" not in name and share > 1 / 8} == set()
    assert not any("/logit_bias/" not in name and "/allowed_tokens/" not in name for name in leaked), leaked
    for attack in ("regex", "grammar", "choice"):
        assert found[f"steering/kept_answered/{attack}/chat"] >= 0.5, attack


def attacked(url: str) -> dict[str, float]:
    sets = {name: sample_file("attacks", f"{name}.jsonl") for name in ("forget", "retain")}
    suite = AttackSuite(**sets, parts=["steering", "alternatives"], settings=AttackSettings(limit=8, max_new_tokens=16))
    served = EndpointTarget(f"{url}/v1")
    served.check(suite.probe())
    scores = suite.measure(Directly(served)).scores
    served.close()
    return {figure.name: figure.value for figure in suite.figures(scores, None)}


class Directly:
    """Asks a target and keeps nothing."""

    draw = 0

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, asks: Mapping[str, Ask], title: str = "") -> dict[str, Reply]:
        return dict(zip(asks, replies(self.target, list(asks.values())), strict=True))

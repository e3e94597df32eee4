"""What of an answer leaves the gateway: nothing that is hit, all else as the engine gave it."""

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gateway_fakes import (
    BOS,
    FORBIDDEN,
    WIDTH,
    FakeEngine,
    FakePolicies,
    FakeProtector,
    FakeRenderer,
    RecordingAudit,
    late,
    policy,
)

from gateway.audit import Audit
from gateway.metrics import GuardMetrics
from gateway.traffic import Traffic
from guard import ClassificationError, ProtectedPrompt, Verdict
from guard.answers import Hit

EOS = 2
PROMPT = [BOS, 5, 6]
#: Read on, and held until the next token.
SUSPICIOUS = 98


class Watch:
    """Hits where `FORBIDDEN` stands; holds `SUSPICIOUS` back until something follows."""

    def __init__(self, answers: "Answers", seen: Sequence[int] = ()) -> None:
        self.guard = self.answers = answers
        self.ids = list(seen)
        self.observed: set[int] = set()
        self.looks = 0

    @property
    def hold(self) -> int:
        return int(self.ids[-1:] == [SUSPICIOUS])

    def add(self, ids: Sequence[int], *, done: bool = False) -> bool:
        self.ids += ids
        return FORBIDDEN in ids or done

    def copy(self) -> "Watch":
        return Watch(self.answers, self.ids)

    of_alternatives = copy

    def look(self) -> Generator[int, None, Hit | None]:
        """Sees the last words alone, as a real one does."""
        yield 1
        self.looks += 1
        if self.answers.error is not None:
            raise self.answers.error
        return Hit(0, 0.9, ends=bool(self.answers.ends.any())) if FORBIDDEN in self.ids[-40:] else None

    def whole(self, ids: Sequence[int]) -> Generator[int, None, Hit | None]:
        self.ids += ids
        return self.look()

    def telling(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in (FORBIDDEN, SUSPICIOUS)]

    def give_away(self, ids: Sequence[int]) -> Generator[int, None, set[int]]:
        yield 1
        if self.answers.error is not None:
            raise self.answers.error
        return {token for token in ids if token == FORBIDDEN}


class Answers:
    """What the policies make of answers, and a guard that corrupts for them."""

    names = ("people",)
    first = 0

    def __init__(self) -> None:
        self.answers = self
        self.policies = [policy()]
        self.ends, self.reads = np.array([False]), np.array([True])
        self.rejects_on_error = self.enforces = True
        self.error: Exception | None = None
        self.watched: list[tuple[list[int], Any, list[int], list[int]]] = []

    def watch(
        self, prompt: Sequence[int] = (), mask: Any = None, answer: Sequence[int] = (), forgets: Sequence[int] = ()
    ) -> Watch:
        self.watched.append((list(prompt), mask, list(answer), list(forgets)))
        return Watch(self, answer)

    def corrupting(self, flagged: Sequence[Verdict]) -> list[int]:
        return [self.names.index(verdict.policy) for verdict in flagged]

    def telling_tokens(self, ids: Sequence[int]) -> set[int]:
        return {number for number, token in enumerate(ids) if token == SUSPICIOUS}

    def forgotten(
        self, prompt: Sequence[int], answer: Sequence[int], unseen: set[int], policy: int
    ) -> Generator[int, None, ProtectedPrompt]:
        yield 1
        ids = [*prompt, *answer]
        content = [token != BOS for token in prompt]
        if not any(content):
            return ProtectedPrompt(ids)
        mask = [*content, *(number in unseen for number in range(len(answer)))]
        return ProtectedPrompt(ids, mask=mask, embeddings=torch.ones(len(ids), WIDTH))


class Works:
    """Does work where it is asked for."""

    is_healthy = True

    async def work(self, work: Generator[int, None, Any], expected_us: int) -> Any:
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value

    async def protect(self, guard: Any, ids: list[int], group: Any = None, trace: Any = None) -> ProtectedPrompt:
        return ProtectedPrompt(ids)


class Engine(FakeEngine):
    """Answers each request with the next script: token ids, one a chunk; the text of a token is its number."""

    def __init__(self, *scripts: Sequence[int] | Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.scripts = list(scripts)
        self.params: list[Any] = []
        self.logprobs: dict[int, dict[int, float]] = {}
        self.sent: list[Any] = []
        self.ended = 0
        self.texts: dict[int, str] = {}
        self.first_chunk = 0
        self.prompt_logprobs: Any = None

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        self.params.append(sampling_params)
        script = self.scripts.pop(0)
        choices = [list(script)] if not script or isinstance(script[0], int) else [list(one) for one in script]
        try:
            if sampling_params.output_kind == late.RequestOutputKind.FINAL_ONLY:
                yield self._output(prompt, [self._completion(n, ids, ids) for n, ids in enumerate(choices)], True)
                return
            left = {number: list(ids) for number, ids in enumerate(choices)}
            while left:
                for number in list(left):
                    size = 1 if not self.first_chunk or len(left[number]) == len(choices[number]) else 1 << 20
                    ids, left[number] = left[number][:size], left[number][size:]
                    first = len(left[number]) + len(ids) == len(choices[number])
                    completion = self._completion(number, ids, choices[number], done=not left[number])
                    if not left[number]:
                        del left[number]
                    output = self._output(prompt, [completion], not left)
                    if self.prompt_logprobs is not None:
                        output.prompt_logprobs = self._of_prompt() if first else []
                    self.sent.append(output)
                    yield output
            self.ended += 1
        finally:
            self.closed += 1

    def _of_prompt(self) -> list[Any]:
        return [
            position and {one: late.Logprob(value, 1, str(one)) for one, value in position.items()}
            for position in self.prompt_logprobs
        ]

    def _completion(self, number: int, ids: list[int], whole: Sequence[int], *, done: bool = True) -> Any:
        logprobs = None
        if self.logprobs:
            logprobs = [
                {one: late.Logprob(value, 1, str(one)) for one, value in {token: -0.1, **self.logprobs}.items()}
                for token in ids
            ]
        text = "".join(self.texts.get(token, f" {token}") for token in ids)
        return late.CompletionOutput(number, text, ids, None, logprobs, finish_reason="length" if done else None)

    @staticmethod
    def _output(prompt: Any, completions: list[Any], finished: bool) -> Any:
        ids = prompt["prompt_token_ids"]
        return late.RequestOutput("r", None, ids, None, completions, finished, num_cached_tokens=len(ids))


class Setup:
    def __init__(self, *scripts: Any, tells: bool = False) -> None:
        from gateway.answers import GuardedAnswers

        self.engine, self.metrics, self.audit = Engine(*scripts), GuardMetrics(), RecordingAudit()
        self.policies = Answers()
        answers = GuardedAnswers(
            self.engine,
            Works(),  # type: ignore[arg-type]
            self.metrics,
            self.audit,
            eos=EOS,
            decode=FakeRenderer().decode,
            tells=tells,
        )
        self.guarded = late.GuardedEngine(
            self.engine, Works(), self.metrics, Traffic(), FakePolicies(self.policies), self.audit, answers=answers
        )

    async def ask(self, *, stream: bool = True, prompt: list[int] = PROMPT, **fields: Any) -> list[Any]:
        kind = late.RequestOutputKind.DELTA if stream else late.RequestOutputKind.FINAL_ONLY
        params = late.SamplingParams(output_kind=kind, **({"max_tokens": 50} | fields))
        return [output async for output in self.guarded.generate(late.tokens_input(list(prompt)), params, "r")]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def ids_of(outputs: Sequence[Any], index: int = 0) -> list[int]:
    return [token for output in outputs for one in output.outputs if one.index == index for token in one.token_ids]


def text_of(outputs: Sequence[Any], index: int = 0) -> str:
    return "".join(one.text for output in outputs for one in output.outputs if one.index == index)


def reasons_of(outputs: Sequence[Any]) -> dict[int, str]:
    return {one.index: one.finish_reason for output in outputs for one in output.outputs if one.finish_reason}


async def test_an_innocent_answer_leaves_as_it_came() -> None:
    setup = Setup([10, 11, 12])
    assert await setup.ask() == setup.engine.sent  # the very objects
    assert setup.counted("eco_answers_total", outcome="passed") == 1
    (whole,) = await Setup([10, 11, 12]).ask(stream=False)
    assert list(whole.outputs[0].token_ids) == [10, 11, 12]


async def test_what_is_held_back_leaves_when_it_is_innocent() -> None:
    setup = Setup([10, SUSPICIOUS, 11, SUSPICIOUS])
    outputs = setup.guarded.generate(
        late.tokens_input(list(PROMPT)), late.SamplingParams(output_kind=late.RequestOutputKind.DELTA), "r"
    )
    seen = [(list(output.outputs[0].token_ids), len(setup.engine.sent)) async for output in outputs]
    assert seen == [([10], 1), ([SUSPICIOUS], 3), ([11], 3), ([SUSPICIOUS], 4)]


async def test_an_innocent_stream_is_read_to_its_end_and_a_hit_aborts_it() -> None:
    setup = Setup([10, 11])
    await setup.ask()
    assert setup.engine.ended == 1  # an abort of what is done would cost the engine a message
    setup = Setup([10, FORBIDDEN, 11, 12], [20])
    await setup.ask()
    assert setup.engine.ended == 1
    assert setup.engine.closed == 2


async def test_tokens_without_text_wait_for_the_rest_of_their_character_where_there_is_text() -> None:
    setup = Setup([10, 11, 12])
    setup.engine.texts = {10: "", 11: "\u00e9", 12: ""}
    assert [len(output.outputs[0].token_ids) for output in await setup.ask()] == [1, 1, 1]
    setup = Setup([10, 11, 12])
    setup.engine.texts = {11: "", 12: ""}
    assert reasons_of(await setup.ask()) == {0: "length"}  # at the end nothing waits any more
    for fields, sent in (({}, 2), ({"detokenize": False}, 1), ({"stop": ["zz"]}, 1)):
        setup = Setup([10, 11, 12])
        setup.engine.texts = {10: "", 11: "x", 12: "y"}
        params = late.SamplingParams(output_kind=late.RequestOutputKind.DELTA, **fields)
        stream = setup.guarded.generate(late.tokens_input(list(PROMPT)), params, "r")
        await anext(stream)
        assert len(setup.engine.sent) == sent
        await stream.aclose()


async def test_a_hit_goes_on_from_a_corrupted_prompt_with_what_had_left() -> None:
    setup = Setup([10, 11, SUSPICIOUS, FORBIDDEN, 12], [20, 21])
    outputs = await setup.ask(min_tokens=4, seed=7)
    assert ids_of(outputs) == [10, 11, 20, 21]
    assert text_of(outputs) == " 10 11 20 21"
    assert reasons_of(outputs) == {0: "length"}
    assert [output.finished for output in outputs] == [False, False, False, True]
    assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(PROMPT)}
    again = setup.engine.prompts[1]
    assert again["prompt_token_ids"] == [*PROMPT, 10, 11]
    assert again["is_token_ids"] == [True, False, False, True, True]
    assert (setup.engine.params[1].max_tokens, setup.engine.params[1].min_tokens) == (48, 2)
    assert setup.engine.params[1].seed not in (None, 7)
    assert setup.engine.closed == 2
    # What is asked was about what the policy forgets, whether or not the prompt was flagged.
    assert setup.policies.watched[0] == (list(PROMPT), None, [], [])
    assert setup.policies.watched[-1] == (list(PROMPT), [False, True, True, False, False], [10, 11], [0])
    assert setup.counted("eco_answer_hits_total", policy="people", action="restart") == 1
    assert setup.counted("eco_answers_total", outcome="restarted") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_to_a_flagged_prompt_must_not_say_what_its_policy_forgets(
    monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    async def protect(_: Works, *asked: Any) -> ProtectedPrompt:
        return await FakeProtector().protect(*asked)

    monkeypatch.setattr(Works, "protect", protect)
    setup = Setup([10, 11])
    await setup.ask(prompt=[BOS, FORBIDDEN, 5], stream=stream)
    assert setup.policies.watched == [([BOS, FORBIDDEN, 5], [False, True, False], [], [0])]


async def test_what_had_left_and_tells_is_not_seen_again() -> None:
    setup = Setup([SUSPICIOUS, 10, FORBIDDEN], [20])
    assert ids_of(await setup.ask()) == [SUSPICIOUS, 10, 20]
    assert setup.engine.prompts[1]["is_token_ids"] == [True, False, False, False, True]
    assert setup.policies.watched[-1][2] == [10]


async def test_after_two_restarts_an_answer_ends() -> None:
    setup = Setup([10, FORBIDDEN], [11, FORBIDDEN], [12, FORBIDDEN])
    outputs = await setup.ask()
    assert ids_of(outputs) == [10, 11, 12]
    assert reasons_of(outputs) == {0: "stop"}
    assert outputs[-1].finished
    assert setup.counted("eco_answer_hits_total", policy="people", action="end") == 1
    assert reasons_of(await Setup([FORBIDDEN], [FORBIDDEN], [FORBIDDEN], tells=True).ask()) == {0: "content_filter"}


async def test_an_end_with_nothing_before_it_has_a_token() -> None:
    setup = Setup([FORBIDDEN])
    setup.policies.ends = np.array([True])
    outputs = await setup.ask()
    assert (ids_of(outputs), text_of(outputs), reasons_of(outputs)) == ([EOS], "", {0: "stop"})
    setup = Setup([FORBIDDEN, 10])
    setup.policies.ends = np.array([True])
    (whole,) = await setup.ask(stream=False)
    assert (ids_of([whole]), text_of([whole]), reasons_of([whole])) == ([EOS], "", {0: "stop"})


@pytest.mark.parametrize("steering", [{"allowed_token_ids": [10, FORBIDDEN]}, {"logit_bias": {FORBIDDEN: 50.0}}])
async def test_a_constrained_answer_that_began_is_not_begun_anew(steering: dict[str, Any]) -> None:
    outputs = await (setup := Setup([10, FORBIDDEN])).ask(**steering)
    assert (ids_of(outputs), reasons_of(outputs)) == ([10], {0: "stop"})
    assert len(setup.engine.prompts) == 1


async def test_a_prompt_without_content_cannot_be_corrupted() -> None:
    outputs = await (setup := Setup([10, FORBIDDEN])).ask(prompt=[BOS])
    assert (ids_of(outputs), reasons_of(outputs), len(setup.engine.prompts)) == ([10], {0: "stop"}, 1)


async def test_of_several_choices_only_the_one_that_is_hit_changes() -> None:
    setup = Setup([[10, 11, 12, 13], [20, FORBIDDEN, 21, 22]], [30, 31])
    outputs = await setup.ask(n=2, seed=3)
    assert len(setup.policies.watched) == 2  # the prompt is read once for both, and once for what is begun anew
    assert ids_of(outputs) == [10, 11, 12, 13]
    assert ids_of(outputs, 1) == [20, 30, 31]
    assert reasons_of(outputs) == {0: "length", 1: "length"}
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert setup.engine.params[1].n == 1
    setup = Setup([[10, 11], [FORBIDDEN, 20]], [30, 31])
    (whole,) = await setup.ask(stream=False, n=2)
    assert [list(one.token_ids) for one in whole.outputs] == [[10, 11], [30, 31]]
    assert [one.index for one in whole.outputs] == [0, 1]


async def test_a_whole_answer_that_is_hit_is_asked_for_again() -> None:
    setup = Setup([10, FORBIDDEN], [20, 21])
    (whole,) = await setup.ask(stream=False)
    assert ids_of([whole]) == [20, 21]
    assert whole.prompt_token_ids == PROMPT
    assert setup.engine.prompts[1]["is_token_ids"] == [True, False, False]
    (whole,) = await Setup([FORBIDDEN], [FORBIDDEN], [FORBIDDEN]).ask(stream=False)
    assert reasons_of([whole]) == {0: "stop"}


@pytest.mark.parametrize("stream", [True, False])
async def test_alternatives_that_would_not_have_left_are_not_told(stream: bool) -> None:
    setup = Setup([10, 11])
    setup.engine.logprobs = {FORBIDDEN: -1.0, SUSPICIOUS: -1.5, 12: -2.0}
    outputs = await setup.ask(stream=stream, logprobs=3)
    positions = [set(position) for output in outputs for one in output.outputs for position in one.logprobs]
    assert positions == [{10, 12, SUSPICIOUS}, {11, 12, SUSPICIOUS}]


@pytest.mark.parametrize("stream", [True, False])
async def test_under_a_constraint_what_would_be_looked_at_is_not_told(stream: bool) -> None:
    setup = Setup([10])
    setup.engine.logprobs = {FORBIDDEN: -1.0, SUSPICIOUS: -1.5, 12: -2.0}
    outputs = await setup.ask(stream=stream, logprobs=3, allowed_token_ids=[10, 11])
    assert [set(position) for output in outputs for one in output.outputs for position in one.logprobs] == [{10, 12}]


async def test_an_end_has_logprobs_where_they_were_asked_for() -> None:
    setup = Setup([FORBIDDEN])
    setup.engine.logprobs = {12: -2.0}
    setup.policies.ends = np.array([True])
    (output,) = await setup.ask(logprobs=1)
    assert [set(position) for position in output.outputs[0].logprobs] == [{EOS}]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_look_that_fails_lets_nothing_more_leave(stream: bool) -> None:
    setup = Setup([10, FORBIDDEN, 11])
    setup.policies.error = ClassificationError("no")
    with pytest.raises(late.GracefulHTTPError):
        await setup.ask(stream=stream)
    assert setup.counted("eco_guard_errors_total", kind="ClassificationError") == 1
    assert setup.counted("eco_answers_total", outcome="failed") == 1
    setup = Setup([10, FORBIDDEN, 11], [20], [21], [22])
    setup.policies.error, setup.policies.rejects_on_error = ClassificationError("no"), False
    assert FORBIDDEN not in ids_of(await setup.ask(stream=stream))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_look_that_fails_ends_an_answer_where_that_is_what_a_hit_does(stream: bool) -> None:
    setup = Setup([10, FORBIDDEN, 11])
    setup.policies.error, setup.policies.rejects_on_error = ClassificationError("no"), False
    setup.policies.ends = np.array([True])
    outputs = await setup.ask(stream=stream)
    assert (reasons_of(outputs), len(setup.engine.prompts)) == ({0: "stop"}, 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_where_policies_but_observe_a_look_that_fails_changes_nothing(stream: bool) -> None:
    setup = Setup([10, FORBIDDEN, 11])
    setup.engine.logprobs = {FORBIDDEN: -1.0}
    setup.policies.error, setup.policies.rejects_on_error = ClassificationError("no"), False
    setup.policies.enforces = False
    outputs = await setup.ask(stream=stream, logprobs=1)
    assert ids_of(outputs) == [10, FORBIDDEN, 11]
    assert all(FORBIDDEN in position for output in outputs for one in output.outputs for position in one.logprobs)
    assert setup.counted("eco_guard_errors_total", kind="ClassificationError") > 0


async def test_a_chunk_of_many_tokens_is_read_as_if_they_came_one_by_one() -> None:
    """A client may ask for rare chunks, and vLLM makes them where nobody takes what it has."""
    innocent = list(range(200, 260))
    setup = Setup([10, *innocent[:30], FORBIDDEN, *innocent], [20])
    setup.engine.first_chunk = 1
    outputs = await setup.ask(stream_interval=4000, max_tokens=200)
    assert ids_of(outputs) == [10, 20]


@pytest.mark.parametrize("seed", [0, 2**63 - 1, -(2**63)])
async def test_the_seed_of_a_restart_is_one_that_engines_can_hold(seed: int) -> None:
    setup = Setup([FORBIDDEN], [FORBIDDEN], [10])
    await setup.ask(seed=seed)
    seeds = [params.seed for params in setup.engine.params]
    assert all(0 <= one < 2**62 for one in seeds[1:])
    assert len(set(seeds)) == 3


async def test_the_prompts_alternatives_leave_with_the_first_of_each_choice() -> None:
    setup = Setup([[10, 11], [20, 21]])
    setup.engine.prompt_logprobs = [None, {5: -1.0, FORBIDDEN: -2.0}, {6: -1.0}]
    outputs = await setup.ask(n=2, prompt_logprobs=1)
    for index in (0, 1):
        mine = [output.prompt_logprobs for output in outputs if output.outputs[0].index == index]
        assert [position and set(position) for position in mine[0]] == [None, {5}, {6}]
        assert mine[1:] == [[]]


async def test_a_client_that_leaves_closes_the_engines_request() -> None:
    setup = Setup([10, 11, 12])
    stream = setup.guarded.generate(
        late.tokens_input(list(PROMPT)), late.SamplingParams(output_kind=late.RequestOutputKind.DELTA), "r"
    )
    await anext(stream)
    await stream.aclose()
    assert setup.engine.closed == 1


async def test_steering_is_refused_where_the_operator_says_so() -> None:
    engine = FakeEngine()
    guarded = late.GuardedEngine(
        engine, Works(), GuardMetrics(), Traffic(), FakePolicies(), Audit(), answers=None, refuse_steering=True
    )
    for fields in (
        {"allowed_token_ids": [1]},
        {"logit_bias": {1: 1.0}},
        {"structured_outputs": late.StructuredOutputsParams(regex="a")},
    ):
        with pytest.raises(late.VLLMValidationError, match="not accepted"):
            await anext(guarded.generate(late.tokens_input([5]), late.SamplingParams(**fields), "r"))
    assert [output async for output in guarded.generate(late.tokens_input([5]), late.SamplingParams(), "r")]
    assert len(engine.prompts) == 1

"""Turns, time limits, refusals, failures and shutdown of the guard in an event loop; only the classifier is a fake."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_fakes import BOS, FORBIDDEN, FakeClassifier, RecordingGuard, guard_with, policy, until

from gateway.metrics import GuardMetrics
from gateway.protector import CostModel, Protector
from gateway.scheduling import Group, QueueFullError
from guard import ClassificationError, GuardError, LoadedPolicy, ProtectedPrompt

#: For what must happen in time; and for what must not.
LONG_S, SHORT_S = 20.0, 0.1


@pytest.fixture(autouse=True)
def _slow_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """What prompts are expected to cost at first: so much that few of them fill a queue."""
    monkeypatch.setattr(CostModel, "START_US_PER_TOKEN", 300.0)


class Setup:
    """A running protector and all that it was made of."""

    def __init__(self, guard: RecordingGuard, classifier: FakeClassifier, timeout_s: float, queue_ms: float) -> None:
        self.guard, self.classifier = guard, classifier
        self.metrics = GuardMetrics()
        self.protector = Protector(self.metrics, timeout_s=timeout_s, queue_ms=queue_ms, stuck_s=SHORT_S)

    async def protect(self, token_ids: list[int], group: Group | None = None) -> ProtectedPrompt:
        return await self.protector.protect(self.guard, token_ids, group)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, *policies: LoadedPolicy, timeout_s: float = LONG_S, queue_ms: float = 5000
) -> AsyncIterator[Setup]:
    classifier = FakeClassifier()
    guard = guard_with(monkeypatch, classifier, policies or (policy(),))
    guard.on_error([FORBIDDEN], RuntimeError())  # the first use of torch takes longer than the short limit
    setup = Setup(guard, classifier, timeout_s, queue_ms)
    setup.protector.start()
    try:
        yield setup
    finally:
        classifier.gate.set()
        setup.protector.stop()


async def test_each_of_many_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[BOS, 5], [BOS, FORBIDDEN, 6], [BOS, 7, 8], [FORBIDDEN]]
    async with running(monkeypatch) as setup:
        answers = await asyncio.gather(*(setup.protect(prompt) for prompt in prompts))
    assert [answer.token_ids for answer in answers] == prompts
    assert [answer.mask for answer in answers] == [None, [False, True, True], None, [True]]
    assert setup.count("eco_prompts_total", outcome="passed") == 2
    assert setup.count("eco_prompts_total", outcome="corrupted") == 2
    assert setup.count("eco_verdicts_total", policy="people", action="corrupt", flagged="true") == 2
    assert setup.count("eco_guard_latency_seconds_count") == 4
    assert setup.count("eco_guard_piece_seconds_count") >= 4
    assert setup.count("eco_guard_queue_prompts") == 0


async def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        long = [[start] * 4500 for start in (100, 1000, 2000)]
        tasks = [asyncio.ensure_future(setup.protect(prompt)) for prompt in long]
        await until(setup.classifier.entered.is_set)
        short = asyncio.ensure_future(setup.protect([1]))
        await until(lambda: setup.count("eco_guard_queue_prompts") == 4)
        assert setup.count("eco_guard_backlog_seconds") > 0
        setup.classifier.gate.set()
        await asyncio.gather(short, *tasks)
    assert setup.guard.begun[:2] == [long[0], [1]]
    assert setup.guard.done[0] == [1]
    assert len(setup.guard.done) == 4


async def test_a_full_queue_refuses_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, queue_ms=1500) as setup:
        setup.classifier.gate.clear()
        long = [[BOS, *range(start, start + 3000)] for start in (100, 4000, 8000)]  # 0.9 s each, at first
        tasks = [asyncio.ensure_future(setup.protect(prompt)) for prompt in long]
        with pytest.raises(QueueFullError) as caught:
            await tasks[2]
        assert not caught.value.own_fault
        assert caught.value.retry_after_s >= 2
        short = asyncio.ensure_future(setup.protect([BOS, 5]))
        setup.classifier.gate.set()
        assert (await short).mask is None
        await asyncio.gather(*tasks[:2])
    assert setup.count("eco_guard_turned_away_total", reason="queue") == 1
    assert long[2] not in setup.guard.begun


async def test_a_request_that_lists_too_much_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, queue_ms=1500) as setup:
        listing = Group()
        prompts = [[BOS, *range(start, start + 1000)] for start in range(0, 64_000, 1000)]
        answers = await asyncio.gather(*(setup.protect(prompt, listing) for prompt in prompts), return_exceptions=True)
        assert all(isinstance(answer, QueueFullError) and answer.own_fault for answer in answers)
        assert setup.count("eco_guard_queue_prompts") == 0
    assert setup.guard.begun == []
    assert setup.count("eco_guard_turned_away_total", reason="list") == 64


async def test_a_long_prompt_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        long = asyncio.ensure_future(setup.protect(list(range(100, 1100))))
        with pytest.raises(ClassificationError):
            await setup.protect([1])
        assert not long.done()
        setup.classifier.gate.set()
        assert (await long).mask is None


async def test_a_hanging_guard_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        with pytest.raises(ClassificationError) as caught:
            await setup.protect([BOS, 5])
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert setup.count("eco_prompts_total", outcome="rejected") == 1
    assert setup.count("eco_guard_errors_total", kind="ClassificationError") == 1


async def test_a_hanging_guard_corrupts_all_content_where_every_policy_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = [policy("a", on_error="corrupt"), policy("b", on_error="corrupt")]
    async with running(monkeypatch, *policies, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        answer = await setup.protect([BOS, 5, 6])
    assert answer.mask == [False, True, True]
    assert answer.embeddings is not None
    assert answer.embeddings[1].tolist() != [5.0] * 4
    assert all(verdict.failed for verdict in answer.verdicts)
    assert setup.count("eco_prompts_total", outcome="corrupted") == 1
    assert setup.count("eco_guard_errors_total", kind="classification_corrupted") == 1


async def test_one_policy_that_rejects_on_error_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = [policy("a", on_error="corrupt"), policy("b", on_error="reject")]
    async with running(monkeypatch, *policies, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        with pytest.raises(ClassificationError):
            await setup.protect([BOS, 5])


async def test_after_a_hang_the_guard_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        late = [setup.protect([BOS, 5]), setup.protect([BOS, 6])]
        assert all(isinstance(e, GuardError) for e in await asyncio.gather(*late, return_exceptions=True))
        setup.protector._timeout_s = LONG_S
        setup.classifier.gate.set()
        answer = await setup.protect([BOS, FORBIDDEN])
    assert answer.mask == [False, True]


async def test_a_fallback_that_fails_is_a_counted_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(token_ids: Sequence[int], error: BaseException) -> Any:
        raise RuntimeError("template lost")

    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        monkeypatch.setattr(setup.guard, "on_error", fail)
        with pytest.raises(GuardError):
            await setup.protect([BOS, 5])
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_a_fallback_that_hangs_is_a_counted_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        gate = setup.classifier.gate
        monkeypatch.setattr(setup.guard, "on_error", lambda token_ids, error: gate.wait(5.0))
        with pytest.raises(GuardError, match="in time"):
            await setup.protect([BOS, 5])
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_the_threads_outlive_a_guard_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        with monkeypatch.context() as patch:
            patch.setattr(setup.classifier, "look", lambda blocks: 1 / 0)
            patch.setattr(setup.guard, "on_error", lambda token_ids, error: 1 / 0)
            for _ in range(2):
                with pytest.raises(ClassificationError) as caught:
                    await setup.protect([BOS, 5])
                assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (await setup.protect([BOS, 5])).mask is None
        assert setup.protector.is_running
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_a_prompt_that_fails_to_classify_is_rejected_and_its_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.error = lambda ids: ValueError("bad") if 13 in ids else None
        answers = await asyncio.gather(*(setup.protect([BOS, i]) for i in (12, 13, FORBIDDEN)), return_exceptions=True)
    assert not isinstance(answers[0], BaseException)
    assert answers[0].mask is None
    assert isinstance(answers[1], ClassificationError)
    assert not isinstance(answers[2], BaseException)
    assert answers[2].mask == [False, True]


async def test_a_client_that_leaves_before_its_turn_is_not_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        tasks = [asyncio.ensure_future(setup.protect([1]))]
        await until(setup.classifier.entered.is_set)
        tasks += [asyncio.ensure_future(setup.protect([i])) for i in (2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        setup.classifier.gate.set()
        assert [(await tasks[0]).token_ids, (await tasks[2]).token_ids] == [[1], [3]]
    assert setup.guard.begun == [[1], [3]]
    assert setup.count("eco_guard_dropped_total", reason="left") == 1


async def test_a_client_that_leaves_during_its_work_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        tasks = [asyncio.ensure_future(setup.protect([BOS, i])) for i in (1, FORBIDDEN)]
        await until(setup.classifier.entered.is_set)
        tasks[0].cancel()
        setup.classifier.gate.set()
        assert (await tasks[1]).mask == [False, True]
        assert (await setup.protect([BOS, 2])).mask is None
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]


async def test_before_start_and_after_stop_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        assert setup.protector.is_running
        assert setup.count("eco_ready") == 1
        setup.protector.stop()
        assert not setup.protector.is_running
        assert setup.count("eco_ready") == 0
        with pytest.raises(GuardError, match="not running"):
            await setup.protect([BOS, 5])
        unstarted = Protector(setup.metrics, timeout_s=LONG_S)
        with pytest.raises(GuardError, match="not running"):
            await unstarted.protect(setup.guard, [BOS, 5])
        unstarted.stop()
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_prompts_waiting_at_stop_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, policy(on_error="corrupt"), timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        waiting = [asyncio.ensure_future(setup.protect([1]))]
        await until(setup.classifier.entered.is_set)
        waiting.append(asyncio.ensure_future(setup.protect([2])))
        await asyncio.sleep(0)
        setup.protector.stop()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ClassificationError, ClassificationError]
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_a_piece_that_never_ends_is_unhealthy_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        with pytest.raises(GuardError):
            await setup.protect([BOS, 5])
        await until(lambda: not setup.protector.is_healthy)
        assert setup.count("eco_ready") == 0
        setup.classifier.gate.set()
        await until(lambda: setup.protector.is_healthy)
    assert setup.count("eco_guard_dropped_total", reason="late") == 1


async def test_work_that_ends_without_a_verdict_is_a_counted_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        monkeypatch.setattr(setup.guard, "protect_in_pieces", lambda token_ids: (piece for piece in (1, 2)))
        with pytest.raises(ClassificationError, match="failed"):
            await setup.protect([BOS, 5])
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_work_without_end_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(token_ids: Sequence[int]) -> Any:
        while True:
            time.sleep(0.001)
            yield 1000

    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        with monkeypatch.context() as patch:
            patch.setattr(setup.guard, "protect_in_pieces", endless)
            with pytest.raises(ClassificationError):
                await asyncio.wait_for(setup.protect([BOS, 5]), LONG_S)
        assert setup.protector.is_healthy
    assert setup.count("eco_guard_dropped_total", reason="late") == 1


async def test_a_panic_of_native_code_rejects_its_prompt_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(token_ids: Sequence[int]) -> Any:
        raise SystemExit
        yield

    async with running(monkeypatch) as setup:
        with monkeypatch.context() as patch:
            patch.setattr(setup.guard, "protect_in_pieces", die)
            with pytest.raises(GuardError, match="failed"):
                await setup.protect([BOS, 5])
        assert setup.protector.is_healthy
        assert (await setup.protect([BOS, 5])).mask is None
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_what_waits_is_estimated_anew_when_others_took_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        tasks = [asyncio.ensure_future(setup.protect([BOS, *range(start, start + 600)])) for start in (100, 1000)]
        await until(setup.classifier.entered.is_set)
        before = setup.count("eco_guard_backlog_seconds")
        await asyncio.sleep(0.5)
        setup.classifier.gate.set()
        await tasks[0]
        assert setup.protector._costs.us_per_token > CostModel.START_US_PER_TOKEN
        await tasks[1]
    assert before > 0


def test_costs_are_learned_from_long_prompts_and_sink_slower_than_they_rise() -> None:
    costs = CostModel()
    first = costs.estimate_us(1000)
    costs.learn(10, 50_000)
    assert costs.estimate_us(1000) == pytest.approx(first, rel=0.1)
    for _ in range(20):
        costs.learn(4000, 4000 * 2000)
    assert costs.estimate_us(1000) == pytest.approx(2_000_000, rel=0.01)
    costs.learn(4000, 0)
    assert costs.estimate_us(1000) > 1_600_000
    for _ in range(100):
        costs.learn(4000, 4000 * 40)
    assert costs.estimate_us(1000) == pytest.approx(41_000, rel=0.01)

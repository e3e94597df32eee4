"""Batches, time limits, failures and shutdown of the guard in an event loop; only the classifier is a fake."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_fakes import BOS, FORBIDDEN, FakeClassifier, RecordingGuard, guard_with, policy

from gateway.metrics import GuardMetrics
from gateway.protector import MAX_BATCH_PROMPTS, Protector
from guard import ClassificationError, GuardError, LoadedPolicy

#: For what must happen in time; and for what must not.
LONG_S, SHORT_S = 20.0, 0.1


class Setup:
    """A running protector and all that it was made of."""

    def __init__(self, guard: RecordingGuard, classifier: FakeClassifier, timeout_s: float) -> None:
        self.guard, self.classifier = guard, classifier
        self.metrics = GuardMetrics()
        self.protector = Protector(guard, self.metrics, timeout_s=timeout_s)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < deadline, "the guard was never asked"
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, *policies: LoadedPolicy, timeout_s: float = LONG_S
) -> AsyncIterator[Setup]:
    classifier = FakeClassifier()
    guard = guard_with(monkeypatch, classifier, policies or (policy(),))
    guard.on_error([FORBIDDEN], RuntimeError())  # the first use of torch takes longer than the short limit
    setup = Setup(guard, classifier, timeout_s)
    setup.protector.start()
    try:
        yield setup
    finally:
        classifier.gate.set()
        await setup.protector.stop()


async def test_concurrent_prompts_share_one_call_and_each_gets_its_own_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [[BOS, 5], [BOS, FORBIDDEN, 6], [BOS, 7, 8], [FORBIDDEN]]
    async with running(monkeypatch) as setup:
        answers = await asyncio.gather(*(setup.protector.protect(prompt) for prompt in prompts))
    assert setup.guard.batches == [prompts]
    assert [answer.token_ids for answer in answers] == prompts
    assert [answer.mask for answer in answers] == [None, [False, True, True], None, [True]]
    assert setup.count("eco_prompts_total", outcome="passed") == 2
    assert setup.count("eco_prompts_total", outcome="corrupted") == 2
    assert setup.count("eco_verdicts_total", policy="people", action="corrupt", flagged="true") == 2
    assert setup.count("eco_guard_latency_seconds_count") == 4


async def test_prompts_gather_while_the_guard_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        first = asyncio.ensure_future(setup.protector.protect([1]))
        await setup.until(setup.classifier.entered.is_set)
        others = [asyncio.ensure_future(setup.protector.protect([i])) for i in (2, 3, 4)]
        await asyncio.sleep(0)
        setup.classifier.gate.set()
        await asyncio.gather(first, *others)
    assert setup.guard.batches == [[[1]], [[2], [3], [4]]]


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        await asyncio.gather(*(setup.protector.protect([i + 1]) for i in range(MAX_BATCH_PROMPTS + 3)))
    assert [len(batch) for batch in setup.guard.batches] == [MAX_BATCH_PROMPTS, 3]


async def test_a_hanging_guard_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        with pytest.raises(ClassificationError) as caught:
            await setup.protector.protect([BOS, 5])
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert setup.count("eco_prompts_total", outcome="rejected") == 1
    assert setup.count("eco_guard_errors_total", kind="ClassificationError") == 1


async def test_a_hanging_guard_corrupts_all_content_where_every_policy_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = [policy("a", on_error="corrupt"), policy("b", on_error="corrupt")]
    async with running(monkeypatch, *policies, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        answer = await setup.protector.protect([BOS, 5, 6])
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
            await setup.protector.protect([BOS, 5])


async def test_after_a_hang_the_guard_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        late = [setup.protector.protect([BOS, 5]), setup.protector.protect([BOS, 6])]
        assert all(isinstance(e, GuardError) for e in await asyncio.gather(*late, return_exceptions=True))
        setup.protector._timeout_s = LONG_S
        setup.classifier.gate.set()
        answer = await setup.protector.protect([BOS, FORBIDDEN])
    assert answer.mask == [False, True]


async def test_a_fallback_that_fails_is_a_counted_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(token_ids: Sequence[int], error: BaseException) -> Any:
        raise RuntimeError("template lost")

    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        monkeypatch.setattr(setup.guard, "on_error", fail)
        with pytest.raises(GuardError):
            await setup.protector.protect([BOS, 5])
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_a_fallback_that_hangs_is_a_counted_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        gate = setup.classifier.gate
        monkeypatch.setattr(setup.guard, "on_error", lambda token_ids, error: gate.wait(5.0))
        with pytest.raises(GuardError, match="in time"):
            await setup.protector.protect([BOS, 5])
    assert setup.count("eco_prompts_total", outcome="rejected") == 1


async def test_the_worker_outlives_a_guard_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        with monkeypatch.context() as patch:
            patch.setattr(setup.guard, "protect_batch", lambda prompts: 1 / 0)
            for _ in range(2):
                with pytest.raises(ClassificationError) as caught:
                    await setup.protector.protect([BOS, 5])
                assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (await setup.protector.protect([BOS, 5])).mask is None
        assert setup.protector.is_running
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_a_prompt_that_fails_to_classify_is_rejected_and_its_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.error = lambda ids: ValueError("bad") if 13 in ids else None
        answers = await asyncio.gather(
            *(setup.protector.protect([BOS, i]) for i in (12, 13, FORBIDDEN)), return_exceptions=True
        )
    assert not isinstance(answers[0], BaseException)
    assert answers[0].mask is None
    assert isinstance(answers[1], ClassificationError)
    assert not isinstance(answers[2], BaseException)
    assert answers[2].mask == [False, True]


async def test_a_client_that_leaves_before_its_turn_is_not_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        tasks = [asyncio.ensure_future(setup.protector.protect([1]))]
        await setup.until(setup.classifier.entered.is_set)
        tasks += [asyncio.ensure_future(setup.protector.protect([i])) for i in (2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        setup.classifier.gate.set()
        assert [(await tasks[0]).token_ids, (await tasks[2]).token_ids] == [[1], [3]]
    assert setup.guard.batches == [[[1]], [[3]]]


async def test_a_client_that_leaves_during_its_batch_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        setup.classifier.gate.clear()
        tasks = [asyncio.ensure_future(setup.protector.protect([BOS, i])) for i in (1, FORBIDDEN)]
        await setup.until(setup.classifier.entered.is_set)
        tasks[0].cancel()
        setup.classifier.gate.set()
        assert (await tasks[1]).mask == [False, True]
        assert (await setup.protector.protect([BOS, 2])).mask is None
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]


async def test_before_start_and_after_stop_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as setup:
        assert setup.protector.is_running
        assert setup.count("eco_ready") == 1
        await setup.protector.stop()
        assert not setup.protector.is_running
        assert setup.count("eco_ready") == 0
        with pytest.raises(GuardError, match="not running"):
            await setup.protector.protect([BOS, 5])
        unstarted = Protector(setup.guard, setup.metrics, timeout_s=LONG_S)
        with pytest.raises(GuardError, match="not running"):
            await unstarted.protect([BOS, 5])
        await unstarted.stop()
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_prompts_waiting_at_stop_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, policy(on_error="corrupt"), timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        waiting = [asyncio.ensure_future(setup.protector.protect([1]))]
        await setup.until(setup.classifier.entered.is_set)
        waiting.append(asyncio.ensure_future(setup.protector.protect([2])))
        await asyncio.sleep(0)
        await setup.protector.stop()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ClassificationError, ClassificationError]
    assert setup.count("eco_prompts_total", outcome="rejected") == 2


async def test_a_batch_that_never_ends_is_unhealthy_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, timeout_s=SHORT_S) as setup:
        setup.classifier.gate.clear()
        with pytest.raises(GuardError):
            await setup.protector.protect([BOS, 5])
        assert not setup.protector.is_healthy
        setup.classifier.gate.set()
        await setup.until(lambda: setup.protector.is_healthy)

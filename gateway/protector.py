"""The guard for an event loop: every prompt's work in its turn, and a deadline for each.

Nothing here blocks the loop; whose turn it is, is `gateway.scheduling`'s to say.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway.metrics import GuardMetrics
from gateway.scheduling import AGED_TURNS, Group, Job, QueueFullError, Scheduler, StoppedError, Work
from gateway.tracing import UNTRACED, RequestTrace
from guard import ClassificationError, Guard, GuardError, ProtectedPrompt

#: A thread that is longer than this in one piece of work, a few milliseconds of it, hangs.
STUCK_S = 30.0
#: A prompt's deadline grows with its work: with its turns it is done in time even where it gets no more than its share.
DEADLINE_FACTOR = 2 * AGED_TURNS
#: What is found out of a prompt's work moves its deadline up to this many times the first estimate: no work is endless.
_MOST_UNDERESTIMATED = 10
#: A change of the estimated cost that is worth estimating all that waits anew.
_RESCALED_CHANGE = 0.02


def default_threads() -> int:
    """One of eight cores classifies; the engine and the server have the others."""
    return max(1, len(os.sched_getaffinity(0)) // 8)


class CostModel:
    """Microseconds of work that a prompt of so many tokens will take, learned from those before it.

    A prompt counts by its tokens: a short one says little about the price of a token.
    """

    #: Before anything was measured: more than a slow core needs.
    START_US_PER_TOKEN = 20.0
    LEAST_US = 1000
    #: A prompt of this many tokens moves the estimate half the way.
    _HALF_TOKENS = 2000

    def __init__(self) -> None:
        self.us_per_token = self.START_US_PER_TOKEN

    def estimate_us(self, tokens: int) -> int:
        return self.LEAST_US + round(tokens * self.us_per_token)

    def learn(self, tokens: int, work_us: int) -> None:
        """What a prompt of `tokens` > 0 took, or will have taken. Known windows cost nothing: it sinks slower than
        it rises, or prompts asked twice would let in too many new ones."""
        measured = max(0, work_us - self.LEAST_US) / tokens
        weight = tokens / (tokens + self._HALF_TOKENS)
        step = weight if measured > self.us_per_token else weight / 4
        self.us_per_token = max(1.0, self.us_per_token + step * (measured - self.us_per_token))


class Protector:
    """Answers `protect` for many requests at once.

    Args:
        timeout_s: longest wait for a short prompt's verdict; a long one may take `DEADLINE_FACTOR` times its
            estimated work longer. Past it a prompt is treated as one that failed to classify.
        queue_ms: milliseconds of work that may run before a newcomer; where it is more, the newcomer is refused.
        threads: how many prompts are under work at the same time.
        stuck_s: longest piece of work of a healthy thread.
    """

    def __init__(
        self,
        metrics: GuardMetrics,
        *,
        timeout_s: float,
        queue_ms: float = 5000.0,
        threads: int = 1,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._scheduler = Scheduler(
            threads=threads, queue_ms=queue_ms, stuck_s=stuck_s, observe_piece=metrics.worked_piece
        )
        self._costs = CostModel()
        self._fallback = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eco-guard-fallback")

    def start(self) -> None:
        """Start the threads; call once."""
        self._scheduler.start()
        self._metrics.ready(lambda: self.is_healthy)
        self._metrics.queue(lambda: self._scheduler.jobs, lambda: self._scheduler.backlog_s)

    @property
    def is_running(self) -> bool:
        return self._scheduler.is_running

    @property
    def is_healthy(self) -> bool:
        """Running, and no thread stuck in one piece of work. A guard with much to do is healthy."""
        return self._scheduler.is_healthy

    @property
    def is_overloaded(self) -> bool:
        """Even short prompts are refused."""
        return self._scheduler.is_full

    def stop(self) -> None:
        """What waits is rejected, and nothing is answered any more."""
        self._scheduler.stop()
        self._fallback.shutdown(wait=False, cancel_futures=True)

    async def protect(
        self,
        guard: Guard,
        token_ids: Sequence[int],
        group: Group | None = None,
        trace: RequestTrace = UNTRACED,
    ) -> ProtectedPrompt:
        """Classify and corrupt, in turn and in time, and count what came of it.

        Args:
            guard: with the policies that apply.
            token_ids: T >= 1 ids.
            group: what the prompts of one HTTP request share; by default a prompt stands alone.
            trace: told when the guard worked.

        Raises:
            QueueFullError: too much waits; nothing was done.
            GuardError: the prompt must not be served.
        """
        started = time.perf_counter()
        try:
            outcome = await self._outcome(guard, token_ids, group or Group(), trace)
        except QueueFullError as error:
            self._metrics.turned_away("list" if error.own_fault else "queue")
            raise
        seconds = time.perf_counter() - started
        if isinstance(outcome, GuardError):
            self._metrics.rejected(outcome, seconds)
            raise outcome
        self._metrics.decided(outcome, seconds)
        return outcome

    async def _outcome(
        self, guard: Guard, token_ids: Sequence[int], group: Group, trace: RequestTrace
    ) -> ProtectedPrompt | GuardError:
        cost_us = self._costs.estimate_us(len(token_ids))
        try:
            job = self._scheduler.admit(guard.protect_in_pieces(token_ids), group, cost_us)
            try:
                await asyncio.sleep(0)  # until all prompts that the request lists are admitted, or one is refused
                self._scheduler.submit(job)
                outcome = await self._answer(job)
            finally:
                job.future.cancel()
                trace.worked(job.first_turn, job.last_turn, job.spent_us)
                self._learn(max(1, len(token_ids)), job)
        except asyncio.CancelledError:
            self._metrics.dropped("left")
            raise
        except TimeoutError as error:
            self._metrics.dropped("late")
            return await self._unclassified(guard, token_ids, error)
        except QueueFullError:
            raise
        except GuardError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, the prompt must not pass
            return _failed("the guard is not running" if isinstance(error, StoppedError) else "the guard failed", error)
        return outcome if isinstance(outcome, ProtectedPrompt) else _failed("the guard failed", None)

    async def work(self, work: Work, expected_us: int, *, begun: bool = True) -> Any:
        """What comes of a piece of work for an answer that has begun, or of another: in turn, and in time.

        Raises:
            QueueFullError: too much waits; an answer that has begun is never told so.
            GuardError: the answer must not go on as it is.
        """
        try:
            job = self._scheduler.admit(work, Group(), expected_us, begun=begun)
            try:
                self._scheduler.submit(job)
                return await self._answer(job)
            finally:
                job.future.cancel()
        except asyncio.CancelledError:
            self._metrics.dropped("left")
            raise
        except TimeoutError as error:
            self._metrics.dropped("late")
            raise _failed("the guard did not answer in time", error) from error
        except (GuardError, QueueFullError):
            raise
        except Exception as error:
            raise _failed("the guard failed", error) from error

    def _learn(self, tokens: int, job: Job) -> None:
        """What waits is estimated anew too: deadlines are to be right for those who came before anything was known."""
        if not job.spent_us:
            return
        before = self._costs.us_per_token
        self._costs.learn(tokens, job.expected_us)
        if abs(self._costs.us_per_token / before - 1) > _RESCALED_CHANGE:
            self._scheduler.rescale(self._costs.us_per_token / before)

    async def _answer(self, job: Job) -> object:
        """The job's outcome. Its deadline moves with what is known of its work, and of all that its request lists."""
        clock = asyncio.get_running_loop().time
        started, most_us = clock(), _MOST_UNDERESTIMATED * job.group.remaining_us
        answer = asyncio.wrap_future(job.future)
        while not answer.done():
            work_s = min(job.group.expected_us, most_us) / 1e6
            left_s = started + self._timeout_s + DEADLINE_FACTOR * work_s - clock()
            if left_s <= 0:
                raise TimeoutError
            await asyncio.wait({answer}, timeout=left_s)
        return answer.result()

    async def _unclassified(
        self, guard: Guard, token_ids: Sequence[int], error: Exception
    ) -> ProtectedPrompt | GuardError:
        """What the policies' `on_error` says, found in a thread of its own: the guard's may be the ones that hang."""
        loop = asyncio.get_running_loop()
        try:
            late = loop.run_in_executor(self._fallback, guard.on_error, token_ids, error)
            return await asyncio.wait_for(late, self._timeout_s)
        except Exception as late_error:  # noqa: BLE001 - after stop() the thread is gone; nothing may pass
            return _failed("the guard did not answer in time", late_error)


def _failed(message: str, cause: BaseException | None) -> ClassificationError:
    failed = ClassificationError(message)
    failed.__cause__ = cause
    return failed

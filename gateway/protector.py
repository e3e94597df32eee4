"""The guard for an event loop: one worker thread, and concurrent prompts share encoder batches.

Nothing here blocks the loop. While one batch is in the thread, further prompts gather for the next.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gateway.metrics import GuardMetrics
from guard import ClassificationError, Guard, GuardError, ProtectedPrompt

#: Prompts in one batch: bounds how long the last to join waits for the others' encoder time.
MAX_BATCH_PROMPTS = 32

_Job = tuple[Sequence[int], "asyncio.Future[ProtectedPrompt | GuardError]"]


class Protector:
    """Answers `protect` for many requests at once.

    Args:
        timeout_s: longest wait for a verdict; past it the prompt is treated as one that failed to classify.
    """

    def __init__(self, guard: Guard, metrics: GuardMetrics, *, timeout_s: float) -> None:
        self.guard = guard
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eco-guard")
        self._fallback = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eco-guard-fallback")
        self._worker: asyncio.Task[None] | None = None
        self._busy_since: float | None = None

    def start(self) -> None:
        """Start the worker; call once, inside the running loop."""
        self._worker = asyncio.get_running_loop().create_task(self._run(), name="eco-guard")
        self._metrics.ready(lambda: self.is_healthy)

    @property
    def is_running(self) -> bool:
        return self._worker is not None and not self._worker.done()

    @property
    def is_healthy(self) -> bool:
        """Running, and not stuck in one batch for longer than a prompt may wait."""
        stuck = self._busy_since is not None and time.monotonic() - self._busy_since > self._timeout_s
        return self.is_running and not stuck

    async def stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._fallback.shutdown(wait=False, cancel_futures=True)

    async def protect(self, token_ids: Sequence[int]) -> ProtectedPrompt:
        """Classify and corrupt, within the time limit, and count what came of it.

        Raises:
            GuardError: the prompt must not be served.
        """
        started = time.perf_counter()
        outcome = await self._outcome(token_ids)
        seconds = time.perf_counter() - started
        if isinstance(outcome, GuardError):
            self._metrics.rejected(outcome, seconds)
            raise outcome
        self._metrics.decided(outcome, seconds)
        return outcome

    async def _outcome(self, token_ids: Sequence[int]) -> ProtectedPrompt | GuardError:
        loop = asyncio.get_running_loop()
        if not self.is_running:
            return ClassificationError("the guard is not running")
        answer: asyncio.Future[ProtectedPrompt | GuardError] = loop.create_future()
        self._jobs.put_nowait((token_ids, answer))
        try:
            return await asyncio.wait_for(answer, self._timeout_s)
        except TimeoutError as error:
            return await self._unclassified(token_ids, error)

    async def _unclassified(self, token_ids: Sequence[int], error: Exception) -> ProtectedPrompt | GuardError:
        """What the policies' `on_error` says, found in a thread of its own: the guard's may be the one that hangs."""
        loop = asyncio.get_running_loop()
        try:
            late = loop.run_in_executor(self._fallback, self.guard.on_error, token_ids, error)
            return await asyncio.wait_for(late, self._timeout_s)
        except Exception as late_error:  # noqa: BLE001 - after stop() the thread is gone; nothing may pass
            failed = ClassificationError("the guard did not answer in time")
            failed.__cause__ = late_error
            return failed

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = [await self._jobs.get()]
            while len(jobs) < MAX_BATCH_PROMPTS and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            jobs = [job for job in jobs if not job[1].done()]  # their clients have gone, or waited too long
            if not jobs:
                continue
            outcomes: Sequence[ProtectedPrompt | GuardError]
            self._busy_since = time.monotonic()
            try:
                outcomes = await loop.run_in_executor(self._thread, self.guard.protect_batch, [ids for ids, _ in jobs])
            except Exception as error:  # noqa: BLE001 - the worker outlives whatever the guard raises
                failed = ClassificationError("the guard failed")
                failed.__cause__ = error
                outcomes = [failed] * len(jobs)
            finally:
                self._busy_since = None
            for (_, answer), outcome in zip(jobs, outcomes, strict=True):
                if not answer.done():
                    answer.set_result(outcome)

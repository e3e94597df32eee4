"""Whose work is done next: pieces of many prompts' work, in turns that are fair, on a few threads.

Knows nothing of prompts: work is a generator that does a bounded piece at each `next`, yields about how many
microseconds are left, and returns its result. All work of one HTTP request is a group, and a group takes its turns
as one: the least work left goes first, and every fourth turn goes to the group that came first, so the short do not
wait for the long and the long are never starved.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from console.errors import EcoError

Work = Generator[int, None, Any]

#: Every this many turns one goes to the group that came first: its share of the threads, however many come after it.
AGED_TURNS = 4
#: Work this short is what an overloaded guard refuses too.
SHORT_US = 20_000
_SIZE_CLASSES = 24
#: Work that corrects half of what is wrong with the hints.
_PACE_HALF_US = 200_000


class QueueFullError(EcoError):
    """More work is waiting than may. Nothing was done for what is refused.

    Attributes:
        retry_after_s: when to come again, in whole seconds, from the estimated backlog.
        own_fault: the request's own other prompts fill the queue, not its neighbours.
    """

    def __init__(self, message: str, *, retry_after_s: int, own_fault: bool) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.own_fault = own_fault


class StoppedError(EcoError):
    """The threads that would do the work are not running."""


class WorkDiedError(EcoError):
    """A piece of work raised what is no `Exception`, as panics of native code are."""


@dataclass(eq=False, slots=True)
class Group:
    """What belongs to one HTTP request: it takes its turns, and fills the queue, as one.

    Attributes:
        jobs: those admitted and not done.
        remaining_us: of all of them, estimated.
        spent_us: microseconds of work done for the request so far.
        waiting: those that wait for a turn, the next one first.
        refused: set once a part of it was refused: then all of it is, for half of an answer is none.
    """

    jobs: int = 0
    remaining_us: int = 0
    spent_us: int = 0
    waiting: "deque[Job]" = field(default_factory=deque)
    refused: QueueFullError | None = None

    @property
    def expected_us(self) -> int:
        """Microseconds that the request takes in all, as far as is known."""
        return self.spent_us + self.remaining_us


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work after the other, and what is known of them.

    Attributes:
        future: the outcome. Cancel it to drop the work: no further piece of it is done.
        spent_us: microseconds of work done.
        remaining_us: estimated microseconds still to do.
        hinted_us: what the work itself last said was left; None before its first piece.
        first_turn, last_turn: `time.monotonic` as the first piece began, and the last one so far ended.
        is_open: it still counts in the queue.
    """

    work: Work
    group: Group
    remaining_us: int = 0
    spent_us: int = 0
    hinted_us: int | None = None
    first_turn: float | None = None
    last_turn: float = 0.0
    is_open: bool = True
    future: "Future[Any]" = field(default_factory=Future)

    @property
    def expected_us(self) -> int:
        """Microseconds that it takes in all, as far as is known."""
        return self.spent_us + self.remaining_us


class FairQueue:
    """The order of turns and the bound of the queue. Not safe for threads: `Scheduler` locks around it.

    The bound is on what would run before a newcomer: groups of a larger size class (a factor of four) give way to it
    and do not count. So a client's long prompts keep out others as long, and not somebody's short question; and as
    the classes are few, the whole queue is bounded too. A lone prompt is never too long.

    Args:
        bound_us: microseconds of work, all threads together, that a newcomer may find before it.
        threads: how many share the work, to say when to come again.
    """

    def __init__(self, bound_us: int, threads: int = 1) -> None:
        self._bound_us = bound_us
        self._threads = threads
        self._groups: dict[Group, None] = {}  # unfinished, in order of arrival
        self._class_us = [0] * _SIZE_CLASSES
        self._turn = 0
        self.jobs = 0

    @property
    def backlog_us(self) -> int:
        return sum(self._class_us)

    @property
    def is_full(self) -> bool:
        """Whether even a short newcomer would be refused."""
        return self._before_us(SHORT_US) > self._bound_us

    def admit(self, work: Work, group: Group, cost_us: int, *, begun: bool = False) -> Job:
        """Count the work as waiting; it gets no turn before `put`.

        Args:
            begun: it is of an answer that has begun, and is not turned away.

        Raises:
            QueueFullError: too much would run before it, or its own group lists too much.
        """
        if group.refused is None and not begun:
            self._check(group, cost_us)
        if group.refused is not None:
            raise group.refused
        job = Job(work, group)
        self._groups[group] = None
        group.jobs += 1
        self.jobs += 1
        self.expect(job, cost_us)
        return job

    def _check(self, group: Group, cost_us: int) -> None:
        size_us = group.remaining_us + cost_us
        others_us = self._before_us(size_us) - group.remaining_us
        if others_us > self._bound_us:
            message = "more is waiting to be checked than may"
            group.refused = QueueFullError(message, retry_after_s=self._seconds(others_us), own_fault=False)
        elif group.jobs and size_us > self._bound_us:
            message = "one request lists more than can be checked at a time"
            group.refused = QueueFullError(message, retry_after_s=self._seconds(size_us), own_fault=True)

    def _before_us(self, size_us: int) -> int:
        """Work of groups of that size class and smaller ones."""
        return sum(self._class_us[: _size_class(size_us) + 1])

    def _seconds(self, work_us: int) -> int:
        return max(1, math.ceil(work_us / self._threads / 1e6))

    def put(self, job: Job) -> None:
        """Let it take turns: within its group, what was put first goes first."""
        job.group.waiting.append(job)

    def put_back(self, job: Job) -> None:
        """After a piece: it goes on before its group's others, so that answers leave one by one."""
        job.group.waiting.appendleft(job)

    def take(self) -> Job | None:
        """The job whose turn it is; None where nobody waits."""
        waiting = [group for group in self._groups if group.waiting]
        if not waiting:
            return None
        self._turn += 1
        is_aged = self._turn % AGED_TURNS == 0
        group = waiting[0] if is_aged else min(waiting, key=lambda group: group.remaining_us)
        return group.waiting.popleft()

    def waiting(self) -> list[Job]:
        """All jobs that wait for a turn."""
        return [job for group in self._groups for job in group.waiting]

    def expect(self, job: Job, remaining_us: int) -> None:
        """Correct the estimate of what is left of a job."""
        self._change(job.group, remaining_us - job.remaining_us)
        job.remaining_us = remaining_us

    def rescale(self, factor: float) -> None:
        """Correct the estimates of all that waits for its first turn: others like it took `factor` times as long."""
        for job in self.waiting():
            if job.hinted_us is None:
                self.expect(job, round(job.remaining_us * factor))

    def remove(self, job: Job) -> None:
        """It is done, or nobody wants it any more. The second time nothing happens."""
        if not job.is_open:
            return
        job.is_open = False
        self._change(job.group, -job.remaining_us)
        self.jobs -= 1
        job.group.jobs -= 1
        with contextlib.suppress(ValueError):
            job.group.waiting.remove(job)
        if not job.group.jobs:
            self._groups.pop(job.group)

    def _change(self, group: Group, difference_us: int) -> None:
        self._class_us[_size_class(group.remaining_us)] -= group.remaining_us
        group.remaining_us += difference_us
        self._class_us[_size_class(group.remaining_us)] += group.remaining_us


def _size_class(work_us: int) -> int:
    return min((work_us.bit_length() + 1) // 2, _SIZE_CLASSES - 1)


class Scheduler:
    """Threads that do pieces of the queue's work, one after the other.

    Args:
        threads: how many.
        queue_ms: milliseconds that what runs before a newcomer may take.
        stuck_s: a thread longer than this in one piece will not come back.
        observe_piece: told the seconds each piece took.
    """

    def __init__(
        self,
        *,
        threads: int,
        queue_ms: float,
        stuck_s: float,
        observe_piece: Callable[[float], object] = float,
    ) -> None:
        self._queue = FairQueue(round(queue_ms * 1000 * threads), threads)
        self._ready = threading.Condition()
        self._stopping = False
        self._stuck_s = stuck_s
        self._observe_piece = observe_piece
        self._pace = 1.0  # microseconds that one of a hint has turned out to be, on this machine and under this load
        self._busy_since: list[float | None] = [None] * threads
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"eco-guard-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads; once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No further piece is done, and what waits fails with `StoppedError`. Does not wait for the threads."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
            waiting = self._queue.waiting()
        for job in waiting:
            _fail(job, StoppedError("the guard is not running"))

    @property
    def is_running(self) -> bool:
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def is_healthy(self) -> bool:
        """Every thread lives, and none is stuck in one piece. How much waits has nothing to do with it."""
        now = time.monotonic()
        stuck = any(since is not None and now - since > self._stuck_s for since in self._busy_since)
        return self.is_running and not stuck

    @property
    def is_full(self) -> bool:
        with self._ready:
            return self._queue.is_full

    @property
    def jobs(self) -> int:
        """Admitted and not done."""
        return self._queue.jobs

    @property
    def backlog_s(self) -> float:
        """Estimated seconds until all that was admitted is done."""
        with self._ready:
            return self._queue.backlog_us / len(self._threads) / 1e6

    def admit(self, work: Work, group: Group, cost_us: int, *, begun: bool = False) -> Job:
        """Count the work in, before any of it is done; `submit` it, or cancel its future.

        Args:
            begun: it is of an answer that has begun, and is not turned away.

        Raises:
            QueueFullError: there is no room for it.
            StoppedError: not every thread is running.
        """
        if not self.is_running:
            raise StoppedError("the guard is not running")
        with self._ready:
            job = self._queue.admit(work, group, cost_us, begun=begun)
        job.future.add_done_callback(lambda _: self._remove(job))
        return job

    def submit(self, job: Job) -> None:
        """Let an admitted job take turns.

        Raises:
            QueueFullError: another part of its group was refused since; this one is not done either.
        """
        with self._ready:
            if job.group.refused is None and not self._stopping:
                self._queue.put(job)
                self._ready.notify()
                return
        job.future.cancel()
        raise job.group.refused or StoppedError("the guard is not running")

    def rescale(self, factor: float) -> None:
        """Correct the estimates of all that waits for its first turn: others like it took `factor` times as long."""
        with self._ready:
            self._queue.rescale(factor)

    def _remove(self, job: Job) -> None:
        with self._ready:
            self._queue.remove(job)

    def _run(self, number: int) -> None:
        while (job := self._next()) is not None:
            self._busy_since[number] = started = time.monotonic()
            try:
                self._piece(job, started)
            finally:
                self._busy_since[number] = None
            self._observe_piece(time.monotonic() - started)

    def _next(self) -> Job | None:
        with self._ready:
            while not self._stopping:
                if (job := self._queue.take()) is not None:
                    return job
                self._ready.wait()
        return None

    def _piece(self, job: Job, started: float) -> None:
        """One piece, if anybody still waits for it, and what comes of it. Whatever is raised, nothing passes."""
        if job.future.done():
            job.work.close()
            return
        if job.first_turn is None:
            job.first_turn = started
        try:
            remaining_us = max(0, int(next(job.work)))
        except StopIteration as end:
            self._note(job, started, 0)
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                job.future.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - the thread outlives what the work raises
            _fail(job, error)
        except BaseException as error:  # noqa: BLE001 - native code panics so; it would end who waits for the outcome
            died = WorkDiedError("a piece of the guard's work died")
            died.__cause__ = error
            _fail(job, died)
        else:
            self._note(job, started, remaining_us)
            self._put_back(job)

    def _note(self, job: Job, started: float, hint_us: int) -> None:
        """Count a piece that has just been done, and what it says of the work that is left."""
        job.last_turn = time.monotonic()
        piece_us = round((job.last_turn - started) * 1e6)
        with self._ready:
            job.spent_us += piece_us
            job.group.spent_us += piece_us
            if job.hinted_us is not None and hint_us < job.hinted_us:
                measured = piece_us / (job.hinted_us - hint_us)
                self._pace += (measured - self._pace) * piece_us / (piece_us + _PACE_HALF_US)
            job.hinted_us = hint_us
            if job.is_open:
                self._queue.expect(job, round(hint_us * self._pace))

    def _put_back(self, job: Job) -> None:
        with self._ready:
            if job.is_open and not self._stopping:
                self._queue.put_back(job)
                return
        job.work.close()
        _fail(job, StoppedError("the guard is not running"))  # unless it was dropped


def _fail(job: Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # nobody waits any more
        job.future.set_exception(error)

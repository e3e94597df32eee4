"""Turns, the queue's bound, dropped and failing work. The work is fake; the threads are real."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from gateway.scheduling import (
    AGED_TURNS,
    FairQueue,
    Group,
    Job,
    QueueFullError,
    Scheduler,
    StoppedError,
    WorkDiedError,
)

PIECE_US = 1000


def no_work() -> Generator[int, None, Any]:
    return
    yield 0


class Turns:
    """A queue on one imagined thread, which does pieces of a millisecond and writes down whose they were."""

    def __init__(self, bound_us: int = 1_000_000) -> None:
        self.queue = FairQueue(bound_us)
        self.names: dict[Job, str] = {}
        self.log: list[str] = []

    def add(self, name: str, pieces: int, group: Group | None = None) -> Job:
        job = self.queue.admit(no_work(), group or Group(), pieces * PIECE_US)
        self.names[job] = name
        self.queue.put(job)
        return job

    def fill(self, name: str, pieces: int, group: Group | None = None) -> QueueFullError:
        """Add more of the same until one is refused."""
        for _ in range(1000):
            try:
                self.add(name, pieces, group)
            except QueueFullError as refused:
                return refused
        raise AssertionError("never refused")

    def turn(self) -> None:
        job = self.queue.take()
        assert job is not None
        self.log.append(self.names[job])
        self.queue.expect(job, job.remaining_us - PIECE_US)
        if job.remaining_us:
            self.queue.put_back(job)
        else:
            self.queue.remove(job)
            self.log.append(f"{self.names[job]}!")

    def run(self) -> list[str]:
        while self.queue.jobs:
            self.turn()
        return self.log

    def finished(self) -> list[str]:
        return [entry[:-1] for entry in self.run() if entry.endswith("!")]


def test_a_short_one_overtakes_the_long_ones_before_it() -> None:
    turns = Turns()
    for name in "abc":
        turns.add(name, 100)
    turns.turn()
    turns.add("short", 3)
    assert turns.finished() == ["short", "a", "b", "c"]
    assert turns.log.index("short!") <= 6


def test_a_request_takes_its_turns_as_one_however_much_it_lists() -> None:
    """Sixty-four prompts of one request are as one long one, to a request of a few pieces that comes later."""
    turns = Turns()
    listing = Group()
    for number in range(64):
        turns.add(f"listed {number}", 5, listing)
    turns.turn()
    turns.add("other", 20)
    finished = turns.finished()
    assert finished.index("other") <= 2  # every fourth turn was the list's
    assert finished[-1] == "listed 63"
    assert [name for name in finished if name != "other"] == [f"listed {number}" for number in range(64)]


def test_answers_leave_one_by_one() -> None:
    turns = Turns()
    listing = Group()
    for number in range(3):
        turns.add(str(number), 4, listing)
    assert turns.run() == [*"0000", "0!", *"1111", "1!", *"2222", "2!"]


def test_a_long_one_gets_its_share_however_many_short_ones_come() -> None:
    turns = Turns()
    turns.add("long", 50)
    for _ in range(50 * AGED_TURNS):
        turns.add("short", 1)
        turns.turn()
    assert "long!" in turns.log
    assert turns.log.count("short") == 50 * (AGED_TURNS - 1)


def test_of_the_long_ones_the_first_is_done_first() -> None:
    turns = Turns()
    for name in ("first", "second"):
        turns.add(name, 40)
    turns.add("third", 39)
    order: list[str] = []
    while turns.queue.jobs:
        turns.add("short", 1)
        turns.turn()
        order = [entry for entry in turns.log if entry in {"first!", "second!", "third!"}]
        if len(order) == 3:
            break
    assert order == ["first!", "second!", "third!"]


def test_a_better_estimate_changes_the_order() -> None:
    turns = Turns()
    thought_long = turns.add("thought long", 100)
    turns.add("medium", 10)
    turns.queue.expect(thought_long, 2 * PIECE_US)
    assert turns.finished() == ["thought long", "medium"]


# --- the bound ----------------------------------------------------------------------------------------------


def test_beyond_the_bound_a_newcomer_is_refused_and_told_when_to_come_again() -> None:
    turns = Turns(bound_us=2_000_000)
    for _ in range(3):
        turns.add("long", 1000)
    with pytest.raises(QueueFullError) as caught:
        turns.add("one more", 1000)
    assert (caught.value.retry_after_s, caught.value.own_fault) == (3, False)
    assert turns.queue.jobs == 3
    assert turns.queue.backlog_us == 3_000_000


def test_short_ones_get_in_where_long_ones_fill_the_queue() -> None:
    turns = Turns(bound_us=2_000_000)
    assert turns.fill("long", 1000).own_fault is False
    assert not turns.queue.is_full
    for _ in range(100):
        turns.add("short", 5)
    assert turns.queue.backlog_us == 3_500_000


def test_short_ones_fill_it_too() -> None:
    turns = Turns(bound_us=1_000_000)
    turns.fill("short", 5)
    assert turns.queue.is_full
    assert 200 <= turns.queue.jobs <= 202


def test_the_whole_queue_is_bounded_whatever_the_sizes() -> None:
    turns = Turns(bound_us=1_000_000)
    for pieces in (*range(3000, 0, -7), *range(1, 3000, 7)):
        try:
            turns.add("any", pieces)
        except QueueFullError:
            continue
    assert turns.queue.backlog_us < 20_000_000


def test_a_lone_prompt_is_never_too_long() -> None:
    turns = Turns(bound_us=1_000_000)
    turns.add("huge", 50_000)
    turns.add("short", 5)
    with pytest.raises(QueueFullError):
        turns.add("as huge", 50_000)


def test_a_request_that_lists_too_much_is_refused_as_a_whole() -> None:
    turns = Turns(bound_us=1_000_000)
    listing = Group()
    refused = turns.fill("listed", 100, listing)
    assert (refused.retry_after_s, refused.own_fault) == (2, True)
    assert listing.refused is refused
    with pytest.raises(QueueFullError):
        turns.add("a small one of the same", 1, listing)


def test_what_is_removed_makes_room_at_once_and_only_once() -> None:
    turns = Turns(bound_us=1_000_000)
    jobs = [turns.add("long", 600) for _ in range(2)]
    with pytest.raises(QueueFullError):
        turns.add("refused", 600)
    for _ in range(2):
        turns.queue.remove(jobs[0])
    turns.add("let in", 600)
    assert turns.queue.jobs == 2
    assert turns.queue.backlog_us == 1_200_000


def test_nothing_is_left_when_all_is_done() -> None:
    turns = Turns()
    listing = Group()
    for number in range(30):
        turns.add("any", 1 + number % 7, listing if number % 2 else None)
    turns.run()
    assert (turns.queue.jobs, turns.queue.backlog_us, turns.queue.take()) == (0, 0, None)


# --- threads ------------------------------------------------------------------------------------------------


class Steps:
    """Work that waits for permission before each piece, and says what was done."""

    def __init__(self, pieces: int, end: Any = "done") -> None:
        self.pieces, self.end = pieces, end
        self.done = 0
        self.closed = False
        self.entered = threading.Event()
        self.allowed = threading.Semaphore(0)

    def work(self) -> Generator[int, None, Any]:
        try:
            for left in range(self.pieces, 0, -1):
                self.entered.set()
                assert self.allowed.acquire(timeout=120)
                self.done += 1
                yield left * PIECE_US
            if isinstance(self.end, BaseException):
                raise self.end
            return self.end
        finally:
            self.closed = True

    def allow(self, pieces: int = 1000) -> "Steps":
        self.allowed.release(pieces)
        return self


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def seconds() -> list[float]:
    return []


@pytest.fixture
def scheduler(seconds: list[float]) -> Iterator[Scheduler]:
    scheduler = Scheduler(threads=1, queue_ms=1000, stuck_s=0.2, observe_piece=seconds.append)
    scheduler.start()
    yield scheduler
    scheduler.stop()


def submit(scheduler: Scheduler, steps: Steps, group: Group | None = None, cost_us: int = PIECE_US) -> Job:
    job = scheduler.admit(steps.work(), group or Group(), cost_us)
    scheduler.submit(job)
    return job


def test_results_arrive_and_work_is_measured(scheduler: Scheduler, seconds: list[float]) -> None:
    job = submit(scheduler, Steps(3, "verdict").allow())
    assert job.future.result(20) == "verdict"
    assert job.spent_us > 0
    until(lambda: len(seconds) == 4)  # the last piece ends the work
    assert (scheduler.jobs, scheduler.backlog_s) == (0, 0.0)


def test_estimates_follow_the_work(scheduler: Scheduler) -> None:
    steps = Steps(500)
    submit(scheduler, steps, cost_us=PIECE_US)
    steps.allow(1)
    until(lambda: scheduler.backlog_s == 0.5)
    steps.allow()


def test_estimates_are_corrected_by_how_fast_the_work_is(scheduler: Scheduler) -> None:
    """Hints of a microsecond for pieces of twenty milliseconds: the next job is not believed them."""

    def work() -> Generator[int, None, Any]:
        for left in range(30, 0, -1):
            yield left
            time.sleep(0.02)

    first, second = (scheduler.admit(work(), Group(), 30) for _ in range(2))
    scheduler.submit(first)
    first.future.result(20)
    scheduler.submit(second)
    until(lambda: second.spent_us > 0)
    assert second.expected_us > 200_000
    second.future.cancel()


def test_what_waits_untouched_is_estimated_anew() -> None:
    turns = Turns()
    listing = Group()
    begun = turns.add("begun", 10)
    waits = [turns.add("waits", 20, listing), turns.add("waits", 30, listing)]
    turns.turn()
    begun.hinted_us = begun.remaining_us
    turns.queue.rescale(3.0)
    assert [job.remaining_us for job in (begun, *waits)] == [9 * PIECE_US, 60 * PIECE_US, 90 * PIECE_US]
    assert turns.queue.backlog_us == 159 * PIECE_US
    assert listing.expected_us == 150 * PIECE_US


def test_dropped_work_ends_at_the_next_piece(scheduler: Scheduler) -> None:
    running, waiting = Steps(10), Steps(10)
    jobs = [submit(scheduler, running, cost_us=1), submit(scheduler, waiting, cost_us=10**6)]
    assert running.entered.wait(120)
    for job in jobs:
        job.future.cancel()
    assert (scheduler.jobs, scheduler.backlog_s) == (0, 0.0)
    running.allow()
    assert submit(scheduler, Steps(1).allow()).future.result(20) == "done"
    assert (running.done, running.closed, waiting.done) == (1, True, 0)


def test_work_that_raises_fails_alone(scheduler: Scheduler) -> None:
    group = Group()
    bad = submit(scheduler, Steps(1, ValueError("bad")).allow(), group)
    good = submit(scheduler, Steps(2, "good").allow(), group)
    assert isinstance(bad.future.exception(20), ValueError)
    assert good.future.result(20) == "good"
    assert scheduler.is_healthy


def test_a_panic_of_native_code_fails_its_work_and_no_other(scheduler: Scheduler) -> None:
    class PanicError(BaseException):
        """As PyO3 raises what a Rust library panics with."""

    bad = submit(scheduler, Steps(1, PanicError()).allow())
    good = submit(scheduler, Steps(2, "good").allow())
    assert isinstance(bad.future.exception(20), WorkDiedError)
    assert good.future.result(20) == "good"
    assert scheduler.is_healthy


def test_busy_is_healthy_and_stuck_is_not(scheduler: Scheduler) -> None:
    busy = [submit(scheduler, Steps(30).allow()) for _ in range(10)]
    until(lambda: all(job.future.done() for job in busy))
    assert scheduler.is_healthy
    stuck = Steps(2)
    job = submit(scheduler, stuck)
    until(lambda: not scheduler.is_healthy)
    assert scheduler.is_running
    stuck.allow()
    assert job.future.result(20) == "done"
    assert scheduler.is_healthy


def test_a_list_refused_in_part_is_not_begun(scheduler: Scheduler) -> None:
    listing = Group()
    listed = [Steps(1).allow() for _ in range(3)]
    jobs = [scheduler.admit(steps.work(), listing, 450_000) for steps in listed[:2]]
    with pytest.raises(QueueFullError):
        scheduler.admit(listed[2].work(), listing, 450_000)
    for job in jobs:
        with pytest.raises(QueueFullError):
            scheduler.submit(job)
    assert submit(scheduler, Steps(1).allow()).future.result(20) == "done"
    assert [steps.done for steps in listed] == [0, 0, 0]
    assert scheduler.jobs == 0


def test_what_waits_at_stop_fails_and_what_runs_ends_at_its_piece(scheduler: Scheduler) -> None:
    running, waiting = Steps(5), Steps(5)
    jobs = [submit(scheduler, running, cost_us=1), submit(scheduler, waiting, cost_us=10**5)]
    assert running.entered.wait(120)
    scheduler.stop()
    running.allow()
    for job in jobs:
        assert isinstance(job.future.exception(20), StoppedError)
    assert (running.done, waiting.done) == (1, 0)
    assert not scheduler.is_running
    with pytest.raises(StoppedError):
        submit(scheduler, Steps(1))


def test_several_threads_share_the_work() -> None:
    scheduler = Scheduler(threads=3, queue_ms=1000, stuck_s=20)
    scheduler.start()
    try:
        together = threading.Barrier(3, timeout=120)

        def meet() -> Generator[int, None, Any]:
            together.wait()
            yield 0
            return "met"

        jobs = [scheduler.admit(meet(), Group(), 1) for _ in range(3)]
        for job in jobs:
            scheduler.submit(job)
        assert [job.future.result(20) for job in jobs] == ["met"] * 3
    finally:
        scheduler.stop()

"""How many requests may be in flight, by the clock."""

import asyncio
import email.utils
import time

import pytest

from endpoints.server import Pace, retry_after_s


async def test_a_limit_halves_the_window_once_for_each_burst_and_successes_widen_it() -> None:
    pace = Pace(16)
    burst = [time.monotonic() for _ in range(5)]
    for began in burst:
        pace.failed(began)
    assert pace.window == 8
    for _ in range(9):
        pace.succeeded()
    assert pace.window == 9
    for _ in range(1000):
        pace.succeeded()
    assert pace.window == 16
    for _ in range(10):
        pace.failed(time.monotonic())
        await asyncio.sleep(0.001)
    assert pace.window == 1


async def test_a_pause_holds_everybody_back() -> None:
    pace = Pace(4)
    pace.pause(0.1)
    started = time.monotonic()

    async def use() -> float:
        async with pace.slot() as began:
            return began - started

    assert min(await asyncio.gather(use(), use(), use())) >= 0.1


async def test_no_more_than_the_window_run_at_once() -> None:
    pace = Pace(3)
    now = most = 0

    async def use() -> None:
        nonlocal now, most
        async with pace.slot():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

    await asyncio.gather(*(use() for _ in range(20)))
    assert most == 3


async def test_backoff_doubles_within_its_jitter_and_is_the_same_for_a_seed() -> None:
    waits = [Pace(1, seed=3).backoff_s(attempt) for attempt in range(10)]
    assert waits == [Pace(1, seed=3).backoff_s(attempt) for attempt in range(10)]
    for attempt, wait in enumerate(waits):
        longest = min(30.0, 0.5 * 2**attempt)
        assert longest / 2 <= wait <= longest


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after_s({"retry-after": "2"}) == 2
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after_s({"retry-after": email.utils.formatdate(time.time() + 30)}) == pytest.approx(30, abs=2)
    assert retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None

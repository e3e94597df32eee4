"""`make bench-serving ARGS="--bursts 2"`: long prompts all at once, and what others and `/health` wait meanwhile."""

import asyncio
import dataclasses
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
from rich.table import Table

from benchmarks.inputs import Stream, distinct_words
from benchmarks.serving_systems import SERVED_NAME, System

CROWD, CROWD_WORDS, BYSTANDER_WORDS = 32, 1000, 25
_BEFORE = 5
_PAUSE_S, _PATIENCE_S = 0.2, 600.0


@dataclasses.dataclass(frozen=True)
class Burst:
    """What happened to one system.

    Attributes:
        statuses: of the crowd's answers, and how many had each.
        crowd_s: until the last of them.
        quiet_s: whole answer to a short question, the median before the crowd.
        short_s, short_worst_s: the same while it was there, one question after the other.
        health_s, health_worst_s: `/health` while it was there.
    """

    statuses: dict[int, int]
    crowd_s: float
    quiet_s: float
    short_s: float
    short_worst_s: float
    health_s: float
    health_worst_s: float


def crowd_texts(seed: int) -> list[str]:
    """Prompts of rare words, none twice in any of them."""
    names = distinct_words(random.Random(f"burst {seed}"))  # noqa: S311 - a reproducible choice
    return [" ".join(next(names) for _ in range(CROWD_WORDS)) for _ in range(CROWD)]


def table_of(bursts: Mapping[str, Sequence[Burst]]) -> Table:
    """A row for each system: medians over its rounds, worst of all rounds."""
    table = Table(title=f"{CROWD} prompts of {CROWD_WORDS} rare words at once; seconds")
    heads = ("system", "answers", "crowd", "short, before", "short, meanwhile", "worst", "/health", "worst")
    for head in heads:
        table.add_column(head, justify="left" if head == "system" else "right")
    for name, rounds in bursts.items():
        answers: Counter[int] = Counter()
        for one in rounds:
            answers.update(one.statuses)
        figures = (
            statistics.median(one.crowd_s for one in rounds),
            statistics.median(one.quiet_s for one in rounds),
            statistics.median(one.short_s for one in rounds),
            max(one.short_worst_s for one in rounds),
            statistics.median(one.health_s for one in rounds),
            max(one.health_worst_s for one in rounds),
        )
        said = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
        table.add_row(name, said, *(f"{value:.2f}" for value in figures))
    return table


def measure(system: System, crowd: Sequence[str], stream: Stream, answer_tokens: int) -> Burst:
    return asyncio.run(_measure(system.url, crowd, stream, answer_tokens))


async def _measure(url: str, crowd: Sequence[str], stream: Stream, answer_tokens: int) -> Burst:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=_PATIENCE_S, limits=limits) as http:

        async def ask(text: str) -> int:
            messages = [{"role": "user", "content": text}]
            body: dict[str, Any] = {"model": SERVED_NAME, "messages": messages, "max_tokens": answer_tokens}
            body |= {"temperature": 0, "ignore_eos": True}
            return (await http.post(f"{url}/v1/chat/completions", json=body)).status_code

        async def short() -> None:
            if (status := await ask(stream.text(BYSTANDER_WORDS))) != 200:
                raise SystemExit(f"{url}: a short question was answered with {status}")

        async def health() -> None:
            if (status := (await http.get(f"{url}/health")).status_code) != 200:
                raise SystemExit(f"{url}: /health was answered with {status}")

        quiet = [await _timed(short) for _ in range(_BEFORE)]
        statuses: list[int] = []

        async def everyone() -> None:
            statuses.extend(await asyncio.gather(*map(ask, crowd)))

        there = asyncio.ensure_future(_timed(everyone))
        shorts, healths = await asyncio.gather(_while(there, short), _while(there, health))
        crowd_s = await there
    return Burst(
        dict(Counter(statuses)),
        crowd_s,
        statistics.median(quiet),
        statistics.median(shorts),
        max(shorts),
        statistics.median(healths),
        max(healths),
    )


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    started = time.monotonic()
    await call()
    return time.monotonic() - started


async def _while(crowd: "asyncio.Future[Any]", call: Callable[[], Awaitable[None]]) -> list[float]:
    """Seconds of each call, one after the other until the crowd is answered; one at least."""
    await asyncio.sleep(_PAUSE_S)
    took = [await _timed(call)]
    while not crowd.done():
        await asyncio.sleep(_PAUSE_S)
        took.append(await _timed(call))
    return took

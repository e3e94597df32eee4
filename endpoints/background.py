"""Coroutines from code that is not one: they run in an event loop in a thread, and their results are iterated here."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


def results_of(produce: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """What a coroutine hands to the function it is given, as it comes; its error after that.

    Closing the iterator, or an exception in the code that iterates (Ctrl-C), cancels the coroutine and waits for it.
    """
    results: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(produce(results.put))

    def run() -> None:
        error: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseException as raised:  # noqa: BLE001 - raised again where the results are read
            error = raised
        loop.run_until_complete(loop.shutdown_asyncgens())
        results.put(_End(error))

    thread = threading.Thread(target=run, name="requests", daemon=True)
    thread.start()
    try:
        while not isinstance(item := results.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def run_in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a coroutine, also where the calling thread has an event loop of its own."""

    async def produce(put: Callable[[T], None]) -> None:
        put(await work())

    (result,) = results_of(produce)
    return result


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Work on the items in their order, so many at once; the first error stops all of it."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

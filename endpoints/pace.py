"""How many requests a server gets at once, and when it gets none: what its own limits leave."""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

__all__ = ["Pace", "retry_after_s"]

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0


class Pace:
    """Additive increase, multiplicative decrease of the requests in flight, and a pause of all of them when limited.

    Belongs to one event loop.

    Args:
        most: requests in flight while the server sets no limit.
        seed: of the jitter, by which requests that failed together do not come back together.
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self._most = most
        self._window = float(most)
        self._active = 0
        self._resume_at = 0.0
        self._lowered_at = -1.0
        self._jitter = random.Random(seed)  # noqa: S311 - spreads requests out, nothing secret
        self._changed = asyncio.Condition()

    @property
    def window(self) -> int:
        """Requests that may be in flight now."""
        return int(self._window)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place among the requests in flight; gives the moment (`time.monotonic`) it began."""
        while True:
            await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
            async with self._changed:
                await self._changed.wait_for(lambda: self._active < self.window)
                if self._resume_at <= time.monotonic():  # else limited while it waited
                    self._active += 1
                    break
        try:
            yield time.monotonic()
        finally:
            self._active -= 1
            async with self._changed:
                self._changed.notify_all()

    def succeeded(self) -> None:
        """One more request in flight for every window of answers."""
        self._window = min(self._most, self._window + 1 / self._window)

    def failed(self, began: float) -> None:
        """Half the requests in flight; requests that began before the last cut are part of the same overload."""
        if began > self._lowered_at:
            self._window = max(1.0, self._window / 2)
            self._lowered_at = time.monotonic()

    def pause(self, wait_s: float) -> None:
        """Begin no request for so long."""
        self._resume_at = max(self._resume_at, time.monotonic() + wait_s)

    def backoff_s(self, attempt: int) -> float:
        """Wait before attempt `attempt` + 1, counted from 0: doubled each time, half of it by chance."""
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)
        return longest * self._jitter.uniform(0.5, 1.0)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After-Ms` or `Retry-After` (RFC 9110, section 10.2.3: seconds or a date) say; None without either."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        with contextlib.suppress(ValueError):
            return max(0.0, float(value) * unit)
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None

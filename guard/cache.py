"""The guard's two caches. Bounded, safe to share between threads; errors are never put in."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

__all__ = ["LockedLRU"]

V = TypeVar("V")


class LockedLRU(Generic[V]):
    """A least-recently-used cache under one lock: cachetools leaves locking to its user."""

    def __init__(self, max_entries: int) -> None:
        self._entries: LRUCache[Hashable, V] = LRUCache(maxsize=max_entries)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            return self._entries.get(key)

    def put(self, key: Hashable, value: V) -> None:
        with self._lock:
            self._entries[key] = value

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

"""A bounded cache at a dict's speed, for what is looked up thousands of times a request."""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps what was used lately: at least the last `size` entries, at most twice as many.

    Two generations instead of an order: what is found in the old one moves to the young one, and a full young one
    replaces the old. Every step is one operation on a dict, so threads may share it without a lock; at worst an entry
    is lost and computed again.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        value = self._young.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def get_all(self, keys: Sequence[K]) -> list[V | None]:
        """`get` of each."""
        values: list[V | None] = list(map(self._young.get, keys))
        if None in values:
            values = [self.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]
        return values

    def put(self, key: K, value: V) -> None:
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young | self._old)

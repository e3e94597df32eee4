"""Replies on disk as they come: a run that is interrupted goes on where it was, and asks nothing twice."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from console.progress import Show
from evaluation.errors import RunError
from evaluation.replies import Ask, Reply, Target, digest_of
from evaluation.runs.record import identifying


class ReplyStore:
    """A file of replies by digest, one JSON line each; the last line may be half written.

    Args:
        path: the file; made when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, Reply] = {}
        self._file: IO[str] | None = None

    def __contains__(self, digest: str) -> bool:
        return digest in self._replies

    def __getitem__(self, digest: str) -> Reply:
        return self._replies[digest]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Appends while the block runs."""
        try:
            with self._path.open("a", encoding="utf-8") as self._file:
                yield
        finally:
            self._file = None

    def put(self, digest: str, reply: Reply) -> None:
        """Keep a reply; on disk before this returns. Within `open` only.

        Raises:
            RunError: the disk refuses.
        """
        assert self._file is not None
        self._replies[digest] = reply
        line = {name: value for name, value in asdict(reply).items() if value not in ((), None)}
        try:
            self._file.write(json.dumps([digest, line]) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written ({error.strerror}); what is in it is kept") from error

    def load(self) -> None:
        """Read what is in the file, and cut off half a line at its end: for who alone writes it.

        Raises:
            RunError: it cannot be read, or holds something else.
        """
        if not self._path.exists():
            return
        try:
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # the process died while it wrote the last line
                os.truncate(self._path, whole)
            for line in data[:whole].decode("utf-8").splitlines():
                digest, fields = json.loads(line)
                values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
                self._replies[digest] = Reply(**values)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self._path}: not a file of replies ({error}); choose another --out or --force") from error


class CachedAsker:
    """An `Asker` (see `evaluation.replies`) over a store that others may share.

    Args:
        target: who is asked.
        store: where replies are looked up and kept.
        draw: the noise draw of all asks.
        on_reply: told of each reply that had to be asked for: the title, how many there are, how many there will be.
    """

    def __init__(self, target: Target, store: ReplyStore, *, draw: int = 0, on_reply: Show | None = None) -> None:
        self.target = target
        self.draw = draw
        self._store = store
        self._identity = json.dumps(identifying(target.describe()), sort_keys=True)
        self._on_reply = on_reply

    def __call__(self, asks: Mapping[str, Ask], title: str = "") -> dict[str, Reply]:
        drawn = [replace(ask, draw=self.draw) if self.draw else ask for ask in asks.values()]
        wanted = self.target.canonical(drawn)
        digests = [digest_of(ask, self._identity) for ask in wanted]
        missing = {digest: ask for digest, ask in zip(digests, wanted, strict=True) if digest not in self._store}
        order, total = list(missing), len(set(digests))
        with self._store.open():
            replies = self.target.replies(list(missing.values()))
            for done, (number, reply) in enumerate(replies, total - len(order) + 1):
                self._store.put(order[number], reply)
                if self._on_reply is not None:
                    self._on_reply(title or "replies", done, total)
        return {key: self._store[digest] for key, digest in zip(asks, digests, strict=True)}

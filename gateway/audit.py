"""The audit log: a line of JSON for each flagged request and each change, for who has to answer for the server later.

Requests never wait for it: lines go through a bounded queue to a thread that writes them, and what does not fit, or
the disk refuses, is counted as lost.
"""

import hashlib
import hmac
import json
import logging
import logging.handlers
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from console.errors import EcoError

#: Lines that may wait for the disk.
_QUEUE_LINES = 10_000
_FILE_MODE = 0o600
#: What has to be written before something else is done has this long, for a place in the queue and then for the disk.
_RECORDED_S = 5.0
#: Characters of a field, and of a prompt in clear.
_LONGEST, _LONGEST_TEXT = 512, 100_000


class AuditError(EcoError):
    """The audit log cannot be written."""


class Audit:
    """Takes what is to be remembered. Without a file, as here, nothing is."""

    is_kept = False
    keeps_text = False
    """Whether prompts are written in clear."""

    def event(self, kind: str, *, waits_s: float = 0.0, **said: Any) -> None:
        """Remember a start, stop, change or failure.

        Args:
            waits_s: how long to wait for room, in a thread that has the time; a request has none.
        """

    def recorded(self, kind: str, **said: Any) -> bool:
        """Write something before going on, and tell whether it is written. Blocking, for a thread."""
        del kind, said
        return False

    def prompt_digest(self, token_ids: Sequence[int]) -> str:
        """What tells that two prompts of T ids were the same, and nothing else of them to who has no secret."""
        del token_ids
        return ""

    def close(self) -> None:
        """Write what waits."""


class AuditFile(Audit):
    """An audit log in a file that is rotated by size.

    Args:
        path: the file; older ones are `path.1`, `path.2` and so on.
        max_bytes: of a file.
        backups: how many older files are kept.
        secret: salts what is said of prompts.
        lost: called with a reason for each line that is lost: `queue` or `disk`.
        keeps_text: write prompts in clear.

    Raises:
        AuditError: the file cannot be written.
    """

    is_kept = True

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        backups: int,
        secret: bytes,
        lost: Callable[[str], None],
        keeps_text: bool = False,
    ) -> None:
        self.keeps_text = keeps_text
        self._key = hashlib.sha256(b"eco audit\0" + secret).digest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=_FILE_MODE)
            file = _RotatingFile(path, max_bytes, backups, lost)
        except OSError as error:
            raise AuditError(f"--eco-audit-log: {path}: cannot be written ({error.strerror})") from error
        self._lost = lost
        self._waiting: queue.Queue[Any] = queue.Queue(_QUEUE_LINES)
        self._listener = _Listener(self._waiting, file)
        self._file = file
        self._listener.start()

    def event(self, kind: str, *, waits_s: float = 0.0, **said: Any) -> None:
        self._put(kind, said, waits_s)

    def recorded(self, kind: str, **said: Any) -> bool:
        written: Future[bool] = Future()
        if not self._put(kind, said, _RECORDED_S, written):
            return False
        try:
            return written.result(_RECORDED_S)
        except TimeoutError:
            return False

    def _put(self, kind: str, said: dict[str, Any], waits_s: float, written: Future[bool] | None = None) -> bool:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Some of it is the client's choice: no length of it crowds out others, and no character of it loses the line.
        cut = {
            name: value[: _LONGEST_TEXT if name == "text" else _LONGEST] if isinstance(value, str) else value
            for name, value in said.items()
        }
        line = json.dumps({"at": at, "event": kind, **cut}, default=str)
        try:
            record = logging.makeLogRecord({"msg": line, "levelno": logging.INFO, "eco_written": written})
            self._waiting.put(record, waits_s > 0, waits_s)
        except queue.Full:
            self._lost("queue")
            return False
        return True

    def prompt_digest(self, token_ids: Sequence[int]) -> str:
        said = b"".join(token.to_bytes(8, "big", signed=True) for token in token_ids)
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()

    def close(self) -> None:
        self._listener.stop()
        self._file.close()


class _Listener(logging.handlers.QueueListener):
    def enqueue_sentinel(self) -> None:
        self.queue.put(self._sentinel)  # type: ignore[attr-defined]  # after what waits, however much


class _RotatingFile(logging.handlers.RotatingFileHandler):
    def __init__(self, path: Path, max_bytes: int, backups: int, lost: Callable[[str], None]) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
        self._lost = lost

    def _open(self) -> Any:
        stream = super()._open()
        Path(self.baseFilename).chmod(_FILE_MODE)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        written: Future[bool] | None = getattr(record, "eco_written", None)
        if written is not None and not written.done():
            written.set_result(True)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own
        self._lost("disk")
        written: Future[bool] | None = getattr(record, "eco_written", None)
        if written is not None:
            written.set_result(False)

"""Replies of a model by request digest, in a JSON-lines file that a killed run leaves usable."""

import json
import tempfile
from pathlib import Path
from types import TracebackType

from optimizer.errors import AugmentationError

__all__ = ["ReplyCache"]

_LINE_START = '{"digest": "'


class ReplyCache:
    """Append-only; a line that a kill cut off is dropped when the file is opened next.

    Raises:
        AugmentationError: on opening, the file holds anything else, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.replies, torn = self._read()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if torn:
                self._drop_last_line()
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise AugmentationError(f"{path}: cannot be written ({error.strerror}); give another cache file") from error

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, digest: str, model: str, reply: str) -> None:
        """Keep a reply; it is in the file when this returns."""
        record = {"digest": digest, "model": model, "reply": reply}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        self.replies[digest] = reply

    def _read(self) -> tuple[dict[str, str], bool]:
        """The replies, and whether the last line was cut off by a kill."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}, False
        except (OSError, UnicodeDecodeError) as error:
            raise AugmentationError(f"{self._path}: cannot be read as a cache file; give another") from error
        *lines, last = text.split("\n")
        if not _LINE_START.startswith(last[: len(_LINE_START)]):
            lines.append(last)  # not ours: to be refused below, never dropped
        replies = {}
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                replies[str(record["digest"])] = str(record["reply"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise AugmentationError(
                    f"{self._path}:{number}: no cached reply; give another cache file, or delete this one"
                ) from error
        return replies, bool(last)

    def _drop_last_line(self) -> None:
        text = self._path.read_text(encoding="utf-8")
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._path.parent, delete=False) as stream:
            stream.write(text[: text.rfind("\n") + 1])
        Path(stream.name).replace(self._path)

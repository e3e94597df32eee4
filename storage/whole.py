"""Files and folders that appear whole under their name, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to fill; where the block ends without an error it is the file `path`, even if the machine stops.

    An existing file is replaced. After an error or a crash it is what it was.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        work.chmod(0o644)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Make `content`, a text as UTF-8, the file `path` (see `whole_file`)."""
    with whole_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty folder to fill, beside `target`; where the block ends without an error it takes that name.

    A `target` that exists is replaced: whether it may be is for the caller to check first. After an error or a
    crash the target is what it was. Without `replace`, one that holds files when the block ends stays.

    Raises:
        OSError: the disk refuses, or the target must not be replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        if not (replace and target.exists()):
            work.rename(target)
            return
        # An existing target steps aside first: a folder cannot be renamed over one that holds files.
        aside = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(aside)
        try:
            work.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)

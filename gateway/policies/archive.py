"""Policies that come over the network: an archive of one bundle, from whom nothing is taken on trust."""

import asyncio
import contextlib
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from console.errors import EcoError
from gateway.policies.records import FolderError
from guard import PolicyBundle, load_bundle

#: Of an archive as it comes, and of all that is in it.
MAX_UPLOAD_BYTES = 512 << 20
MAX_UNPACKED_BYTES = 1 << 30
_MAX_MEMBERS = 128
_CHUNK_BYTES = 1 << 20


class ArchiveError(FolderError):
    """An upload is no archive of one bundle."""


class TooLargeError(ArchiveError):
    """An upload is larger than is taken."""


def pack(bundle: Path, out: BinaryIO) -> None:
    """Write a bundle's folder as a gzipped tar: files alone, named from the folder on."""
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for file in sorted(path for path in bundle.rglob("*") if path.is_file()):  # their names are short and plain
            archive.add(file, arcname=file.relative_to(bundle).as_posix(), recursive=False, filter=_anonymous)


async def received(chunks: AsyncIterator[bytes], out: BinaryIO, most_bytes: int = MAX_UPLOAD_BYTES) -> None:
    """Write what comes to a file.

    Raises:
        TooLargeError: it is more than `most_bytes`; the rest is not read.
    """
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most_bytes:
            raise TooLargeError(f"the archive is larger than {most_bytes >> 20} MiB")
        await asyncio.to_thread(out.write, chunk)
    out.seek(0)


@contextlib.contextmanager
def unpacked(archive: BinaryIO, most_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[PolicyBundle]:
    """The bundle in an archive, verified, in a folder that is there until the block ends. Blocking.

    Only plain files with plain relative names are taken, so many and so much of them: no links, no devices, nothing
    above the folder. What is in them is checked as that of any bundle; no part of one is code.

    Raises:
        ArchiveError: it is no such archive.
        BundleError: what it holds is no bundle.
    """
    folder = Path(tempfile.mkdtemp(prefix="eco-upload-"))
    try:
        try:
            with tarfile.open(fileobj=archive, mode="r|gz", tarinfo=_Member) as members:
                _extract(members, folder, most_bytes)
        except EcoError:
            raise
        except Exception as error:  # what tarfile and zlib make of bytes that are none
            raise ArchiveError(f"not a gzipped tar of a policy folder ({type(error).__name__})") from error
        yield load_bundle(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Member(tarfile.TarInfo):
    """A file or folder, and no extended header or sparse map: tarfile reads these into memory at their own word."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            raise ArchiveError("an archive of a policy holds plain files with relative names alone")
        return member


def _extract(members: tarfile.TarFile, folder: Path, most_bytes: int) -> None:
    left, files = most_bytes, 0
    for member in members:
        files += 1
        if files > _MAX_MEMBERS:
            raise ArchiveError(f"more than {_MAX_MEMBERS} files; an archive holds one policy")
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        parts = name.split("/")
        if not member.isreg() or not all(parts) or {".", ".."} & set(parts) or "\\" in name or "\0" in name:
            raise ArchiveError(f"{name[:100]!r}: an archive of a policy holds plain files with relative names alone")
        left -= member.size
        if left < 0:
            raise TooLargeError(f"unpacked, the archive is larger than {most_bytes >> 20} MiB")
        source = members.extractfile(member)
        assert source is not None
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member

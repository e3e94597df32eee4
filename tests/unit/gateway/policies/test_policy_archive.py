"""Uploads: an archive of one bundle and nothing else, from whom nothing is taken on trust."""

import gzip
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.policies.archive import ArchiveError, TooLargeError, pack, received, unpacked
from guard import BundleError


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else member.size
            tar.addfile(member, io.BytesIO(content))
    out.seek(0)
    return out


def file(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_a_bundle_comes_out_as_it_went_in(tmp_path: Path, make_bundle) -> None:
    bundle = make_bundle(tmp_path / "people")
    out = io.BytesIO()
    pack(bundle.path, out)
    out.seek(0)
    with unpacked(out) as found:
        assert (found.digest, found.config) == (bundle.digest, bundle.config)
        place = found.path
    assert not place.exists()


@pytest.mark.parametrize(
    "member",
    [
        file("../policy.yaml"),
        file("/etc/policy.yaml"),
        file("plots/../../policy.yaml"),
        file("plots//x.svg"),
        special("policy.yaml", tarfile.SYMTYPE, "/etc/passwd"),
        special("policy.yaml", tarfile.LNKTYPE, "head.safetensors"),
        special("policy.yaml", tarfile.FIFOTYPE),
        special("policy.yaml", tarfile.CHRTYPE),
        special("policy.yaml", tarfile.GNUTYPE_SPARSE),
        special("././@LongLink", tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_hostile_members_are_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="plain files"), unpacked(archive((member, b"x"))):
        pass


def test_bombs_are_refused_before_they_are_written() -> None:
    with pytest.raises(TooLargeError), unpacked(archive((file("policy.yaml"), bytes(5000))), most_bytes=4096):
        pass
    many = [(file(f"plots/{number}.svg"), b"") for number in range(200)]
    with pytest.raises(ArchiveError, match="more than"), unpacked(archive(*many)):
        pass


def test_a_header_that_is_to_be_read_into_memory_is_not() -> None:
    huge = tarfile.TarInfo("name")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 32
    with pytest.raises(ArchiveError, match="plain files"), unpacked(io.BytesIO(gzip.compress(huge.tobuf()))):
        pass


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no archive", id="text"),
        pytest.param(gzip.compress(b"no tar" * 200), id="gzip"),
        pytest.param(gzip.compress(b"x")[:-9], id="cut"),
        pytest.param(gzip.compress(b"x" * 600)[:20] + b"\xff" * 30, id="damaged"),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises((ArchiveError, BundleError)), unpacked(io.BytesIO(content)):
        pass


def test_an_archive_of_something_else_is_no_policy() -> None:
    with pytest.raises(BundleError), unpacked(archive((file("readme.txt"), b"hello"))):
        pass


async def test_an_upload_is_cut_off_where_it_is_too_large() -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield bytes(1024)

    with pytest.raises(TooLargeError):
        await received(chunks(), io.BytesIO(), most_bytes=4096)
    assert sent == 5

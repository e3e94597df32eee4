"""Files and folders are there whole or not at all, and digests are what sha256sum says."""

import hashlib
from pathlib import Path

import pytest

from storage.digests import folder_digest, sha256_of_file, sha256_of_json
from storage.whole import whole_file, whole_folder, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_file_that_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "one")
    with pytest.raises(TypeError), whole_file(path) as stream:
        stream.writelines([b"tw", None])  # type: ignore[list-item]
    assert path.read_text() == "one"
    assert [child.name for child in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_takes_its_name_when_it_is_full(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "folder"
    if exists:
        target.mkdir()
        (target / "old").touch()
    with whole_folder(target) as work:
        (work / "new").touch()
        assert {child.name for child in target.glob("*")} == ({"old"} if exists else set())
    assert [child.name for child in target.iterdir()] == ["new"]
    assert [child.name for child in tmp_path.iterdir()] == ["folder"]


def test_an_error_leaves_the_folder_that_was(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(target):
        raise RuntimeError
    assert [child.name for child in target.iterdir()] == ["old"]
    assert [child.name for child in tmp_path.iterdir()] == ["folder"]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert sha256_of_file(tmp_path / "a.txt") == hashlib.sha256(b"a").hexdigest()
    assert sha256_of_json({"b": 1, "a": 2}, sort_keys=True) == hashlib.sha256(b'{"a": 2, "b": 1}').hexdigest()
    before = folder_digest(tmp_path, ["*.txt"])
    (tmp_path / "b.bin").write_text("left out")
    assert folder_digest(tmp_path, ["*.txt"]) == before
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    assert folder_digest(tmp_path, ["*.txt"]) != before

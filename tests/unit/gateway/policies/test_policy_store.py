"""What lies in an object store is copied and acts; a store that cannot be had, or is half written, changes nothing."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from gateway.policies import store as store_module
from gateway.policies.activation import Activation, Record
from gateway.policies.folder import STATE, PolicyFolder
from gateway.policies.records import FolderError
from gateway.policies.store import PolicyStore, open_folder
from guard import BundleError

MakeBundle = Callable[..., Any]
URL = "memory://bucket/policies"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store that is looked at whenever it is asked for."""
    monkeypatch.setattr(store_module, "STORE_POLL_S", 0.0)
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def put(bucket: Any, folder: Path, name: str) -> None:
    for file in (path for path in folder.rglob("*") if path.is_file()):
        bucket.pipe_file(f"/bucket/policies/{(Path(name) / file.relative_to(folder)).as_posix()}", file.read_bytes())


def acting(folder: PolicyFolder) -> dict[str, str]:
    """What it says once nothing changes any more."""
    folder.scan()
    return {one.name: one.bundle.digest for one in folder.scan().wanted}


def test_what_is_put_into_a_store_acts_and_what_is_removed_does_not(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = open_folder(URL)
    people, books = make_bundle(tmp_path / "x", "people"), make_bundle(tmp_path / "y", "books")
    put(bucket, people.path, "x")
    assert acting(folder) == {"people": people.digest}
    put(bucket, books.path, "y")
    assert acting(folder) == {"books": books.digest, "people": people.digest}
    newer = make_bundle(tmp_path / "x", "people", version="2")
    put(bucket, newer.path, "x")
    assert acting(folder) == {"books": books.digest, "people": newer.digest}
    bucket.rm("/bucket/policies/x", recursive=True)
    acting(folder)
    assert acting(folder) == {"books": books.digest}


def test_what_is_away_at_one_listing_acts_on(bucket: Any, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = open_folder(URL)
    people, books = make_bundle(tmp_path / "x", "people"), make_bundle(tmp_path / "y", "books")
    put(bucket, people.path, "x")
    put(bucket, books.path, "y")
    both = acting(folder)
    bucket.rm("/bucket/policies/x", recursive=True)
    assert {one.name for one in folder.scan().wanted} == set(both)
    put(bucket, people.path, "x")
    for _ in range(2):
        assert acting(folder) == both


def test_a_store_is_only_read(bucket: Any, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder, bundle = open_folder(URL), make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    acting(folder)
    before = dict(bucket.store)
    with pytest.raises(FolderError, match=f"{URL}: cannot be written from here"):
        folder.say("people", Activation(share=50), by="me")
    assert dict(bucket.store) == before


def test_records_and_kept_versions_in_a_store_hold(bucket: Any, make_bundle: MakeBundle, tmp_path: Path) -> None:
    (place := tmp_path / "folder").mkdir()
    written = PolicyFolder(place)
    bundle = written.keep(make_bundle(tmp_path / "x"))
    written.scan()
    record = written.say("people", Activation(digest=bundle.digest, share=50), by="me")
    put(bucket, place, "")
    folder = open_folder(URL)
    assert acting(folder) == {"people": bundle.digest}
    assert folder.identity == written.identity
    assert folder.record("people") == record
    off = Record(entries=record.entries, current=Activation(active=False))
    bucket.pipe_file(f"/bucket/policies/{STATE}/people/record.json", off.model_dump_json().encode())
    assert acting(folder) == {}


def test_half_a_bundle_is_refused_and_the_one_before_acts_on(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder, bundle = open_folder(URL), make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    acting(folder)
    bucket.pipe_file("/bucket/policies/x/head.safetensors", b"cut")
    bucket.pipe_file("/bucket/policies/x/MANIFEST.json", b"{}")
    assert acting(folder) == {"people": bundle.digest}
    assert "x" in folder.scan().refused
    with pytest.raises(BundleError):
        open_folder(URL).scan(strict=True)


def test_a_store_that_fails_or_is_empty_at_once_is_no_order(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bundle = open_folder(URL), make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    acting(folder)
    kept = dict(bucket.store)
    bucket.rm("/bucket/policies", recursive=True)
    with pytest.raises(FolderError, match="lost"):
        folder.scan()
    with monkeypatch.context() as failing:
        failing.setattr(type(bucket), "find", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
        with pytest.raises(FolderError, match=r"cannot be listed.*no route to host"):
            folder.scan()
    bucket.store.update(kept)
    assert acting(folder) == {"people": bundle.digest}


def test_a_folder_that_cannot_be_listed_is_no_order(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec walks such stores folder by folder, and of itself leaves out what it cannot list."""
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    monkeypatch.setattr(store_module, "STORE_POLL_S", 0.0)
    bundles = {make_bundle(tmp_path / "policies" / name, name).config.name for name in ("people", "books")}
    folder = open_folder(f"file://{tmp_path / 'policies'}")
    assert set(acting(folder)) == bundles
    listed = LocalFileSystem.ls

    def refuse(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("/people"):
            raise PermissionError("denied")
        return listed(self, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", refuse)
    for _ in range(3):
        with pytest.raises(FolderError, match="cannot be listed"):
            folder.scan()
    monkeypatch.setattr(LocalFileSystem, "ls", listed)
    assert set(acting(folder)) == bundles


def test_a_store_that_hangs_is_left_behind(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bundle = open_folder(URL), make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    acting(folder)
    goes_on, find = threading.Event(), type(bucket).find

    def hang(*args: Any, **options: Any) -> Any:
        goes_on.wait()
        return find(*args, **options)

    with monkeypatch.context() as hanging:
        hanging.setattr(store_module, "STORE_ANSWERS_S", 0.05)
        hanging.setattr(type(bucket), "find", hang)
        with pytest.raises(FolderError, match=r"does not answer in 0\.05 s"):
            folder.scan()
        with pytest.raises(FolderError, match="does not answer"):  # and no second thread is begun
            folder.scan()
        assert [thread.name for thread in threading.enumerate()].count("eco-policy-store") == 1
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "eco-policy-store":
            thread.join(20)
    assert acting(folder) == {"people": bundle.digest}


def test_at_the_start_an_empty_store_is_an_error_but_for_one_that_says_so(bucket: Any) -> None:
    with pytest.raises(FolderError, match=f"--policy-dir: {URL}: holds nothing; check the address"):
        open_folder(URL).scan(strict=True)
    bucket.pipe_file(f"/bucket/policies/{STATE}/.identity", b"empty on purpose")
    assert open_folder(URL).scan(strict=True).wanted == ()


def test_what_cannot_be_copied_is_told_and_the_rest_acts(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(URL)
    people, books = make_bundle(tmp_path / "x", "people"), make_bundle(tmp_path / "y", "books")
    put(bucket, people.path, "x")
    put(bucket, books.path, "y")
    get = type(bucket).get

    def refuse_x(self: Any, source: list[str], target: list[str]) -> None:
        if "/x/" in source[0]:
            raise PermissionError("denied")
        get(self, source, target)

    with monkeypatch.context() as failing:
        failing.setattr(type(bucket), "get", refuse_x)
        assert acting(folder) == {"books": books.digest}
        assert "denied" in folder.scan().refused["x"]
        with pytest.raises(FolderError, match="denied"):
            open_folder(URL).scan(strict=True)
    assert acting(folder) == {"books": books.digest, "people": people.digest}


def test_names_that_are_no_names_of_files_are_left_out(bucket: Any, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    outside = f"{PolicyStore.open(URL).folder.name}-outside"
    for name in (f"../{outside}", "x/../../y", "x//y", ".hidden/z", "loose", f"{STATE}/.lock"):
        bucket.store[f"/bucket/policies/{name}"] = bucket.store["/bucket/policies/x/MANIFEST.json"]
    folder = open_folder(URL)
    assert acting(folder) == {"people": bundle.digest}
    assert sorted(path.name for path in folder.path.iterdir()) == ["x"]


def test_a_store_is_not_listed_at_every_look(
    bucket: Any, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bundle = open_folder(URL), make_bundle(tmp_path / "x")
    put(bucket, bundle.path, "x")
    monkeypatch.setattr(store_module, "STORE_POLL_S", 1e6)
    assert acting(folder) == {"people": bundle.digest}
    bucket.rm("/bucket/policies", recursive=True)
    assert acting(folder) == {"people": bundle.digest}


def test_addresses_that_nothing_is_known_of() -> None:
    with pytest.raises(FolderError, match="--policy-dir: nonesuch://x: cannot be opened"):
        open_folder("nonesuch://x")


def test_a_folder_by_its_address_is_copied_too(bucket: Any, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "policies" / "x")
    folder = open_folder(f"file://{tmp_path / 'policies'}")
    assert acting(folder) == {"people": bundle.digest}
    assert folder.path != tmp_path / "policies"
    shutil.rmtree(tmp_path / "policies" / "x")
    with pytest.raises(FolderError, match="lost"):
        folder.scan()

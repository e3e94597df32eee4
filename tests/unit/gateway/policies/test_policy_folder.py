"""What lies in the policy folder acts; what is half there, or all at once gone, changes nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gateway.policies.activation import Activation
from gateway.policies.folder import KEPT_VERSIONS, STATE, PolicyFolder, Scan
from gateway.policies.records import FolderError
from guard import BundleError, PolicyBundle


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    return folder


def settled(folder: PolicyFolder) -> Scan:
    """What it says once nothing changes any more."""
    folder.scan()
    return folder.scan()


def acting(scan: Scan) -> dict[str, str]:
    return {one.name: one.bundle.digest for one in scan.wanted}


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="--policy-dir"):
        PolicyFolder(tmp_path / "none")


def test_what_is_put_there_acts_and_what_is_taken_away_does_not(place: Path, make_bundle) -> None:
    folder = PolicyFolder(place)
    assert settled(folder).wanted == ()
    people, books = make_bundle(place / "x", "people"), make_bundle(place / "y", "books")
    assert acting(settled(folder)) == {"books": books.digest, "people": people.digest}
    shutil.rmtree(place / "x")
    assert acting(settled(folder)) == {"books": books.digest}


def test_a_folder_that_is_replaced_acts_all_the_time(place: Path, make_bundle) -> None:
    folder, first = PolicyFolder(place), make_bundle(place / "x")
    settled(folder)
    (place / "x").rename(place / ".aside")
    assert acting(folder.scan()) == {"people": first.digest}
    second = make_bundle(place / "x", version="2")
    assert acting(folder.scan()) == {"people": first.digest}
    assert acting(folder.scan()) == {"people": second.digest}


def test_a_record_that_is_gone_is_no_order(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    bundle = kept(folder, make_bundle, tmp_path, "1")
    folder.say("people", Activation(digest=bundle.digest), by="me")
    folder.scan()
    (place / STATE / "people" / "record.json").unlink()
    scan = folder.scan()
    assert acting(scan) == {"people": bundle.digest}
    assert "is gone" in scan.refused[f"{STATE}/people"]
    shutil.rmtree(place / STATE / "people")
    assert acting(folder.scan()) == {"people": bundle.digest}
    assert folder.scan() == Scan((), {})


def test_what_changes_while_it_is_copied_is_not_kept(place: Path, make_bundle, tmp_path: Path) -> None:
    folder, bundle = PolicyFolder(place), make_bundle(tmp_path / "x")
    (tmp_path / "x" / "head.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="sha256"):
        folder.keep(bundle)
    assert folder.versions("people") == []


def test_a_new_version_replaces_the_old_one(place: Path, make_bundle) -> None:
    folder = PolicyFolder(place)
    first = make_bundle(place / "x")
    assert acting(settled(folder)) == {"people": first.digest}
    second = make_bundle(place / "x", version="2")
    assert acting(settled(folder)) == {"people": second.digest}


def test_a_bundle_is_not_read_while_it_is_copied(place: Path, make_bundle, tmp_path: Path) -> None:
    folder, whole = PolicyFolder(place), make_bundle(tmp_path / "whole").path
    (place / "x").mkdir()
    for file in sorted(path for path in whole.rglob("*") if path.is_file()):
        shutil.copy(file, place / "x" / file.name)
        assert folder.scan() == Scan((), {})
    assert list(acting(folder.scan())) == ["people"]


def test_a_broken_bundle_is_refused_and_the_old_one_goes_on(place: Path, make_bundle) -> None:
    folder, first = PolicyFolder(place), make_bundle(place / "x")
    settled(folder)
    (place / "x" / "policy.yaml").write_text("name: other\n")
    (place / "x" / "MANIFEST.json").touch()
    scan = settled(folder)
    assert acting(scan) == {"people": first.digest}
    assert "policy.yaml" in scan.refused["x"]
    repaired = make_bundle(place / "x", version="2")
    assert settled(folder) == Scan(settled(folder).wanted, {})
    assert acting(folder.scan()) == {"people": repaired.digest}


def test_at_the_start_a_broken_bundle_is_an_error(place: Path, make_bundle) -> None:
    make_bundle(place / "x")
    (place / "x" / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(BundleError, match=r"head\.safetensors"):
        PolicyFolder(place).scan(strict=True)


def test_at_the_start_the_version_that_acted_stands_in_for_a_broken_one(place: Path, make_bundle) -> None:
    folder, first = PolicyFolder(place), make_bundle(place / "x")
    folder.note_put(settled(folder).wanted[0])
    (place / "x" / "head.safetensors").write_bytes(b"cut")
    scan = PolicyFolder(place).scan(strict=True)
    assert acting(scan) == {"people": first.digest}
    assert "head.safetensors" in scan.refused["x"]


def test_one_name_in_two_folders_is_one_policy(place: Path, make_bundle) -> None:
    folder, first = PolicyFolder(place), make_bundle(place / "a")
    make_bundle(place / "b", version="2")
    scan = settled(folder)
    assert acting(scan) == {"people": first.digest}
    assert "is that of a too" in scan.refused["b"]


def test_a_lost_mount_is_no_order_to_remember_everything(place: Path, make_bundle) -> None:
    folder = PolicyFolder(place)
    make_bundle(place / "x")
    settled(folder)
    for child in list(place.iterdir()):
        shutil.rmtree(child)
    with pytest.raises(FolderError, match="lost"):
        folder.scan()
    place.rmdir()
    with pytest.raises(FolderError):
        folder.scan()


def test_an_unmounted_folder_with_a_state_of_its_own_is_not_the_mount(place: Path, make_bundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bare" / "x")
    PolicyFolder(tmp_path / "bare")  # as a server that started before the mount leaves it
    shutil.rmtree(tmp_path / "bare" / "x")
    folder = PolicyFolder(place)
    bundle = kept(folder, make_bundle, tmp_path, "1")
    folder.say("people", Activation(digest=bundle.digest), by="me")
    settled(folder)
    place.rename(tmp_path / "mounted")
    (tmp_path / "bare").rename(place)
    for _ in range(3):
        with pytest.raises(FolderError, match="lost"):
            folder.scan()


def test_a_link_whose_target_is_lost_is_no_order(place: Path, make_bundle, tmp_path: Path) -> None:
    folder, bundle = PolicyFolder(place), make_bundle(tmp_path / "elsewhere")
    (place / "x").symlink_to(tmp_path / "elsewhere")
    assert acting(settled(folder)) == {"people": bundle.digest}
    shutil.rmtree(tmp_path / "elsewhere")
    for _ in range(4):
        scan = folder.scan()
    assert acting(scan) == {"people": bundle.digest}
    assert scan.refused
    (place / "x").unlink()
    assert acting(settled(folder)) == {}


def test_a_newcomer_does_not_take_the_place_of_who_acts(place: Path, make_bundle) -> None:
    folder, first = PolicyFolder(place), make_bundle(place / "z")
    settled(folder)
    make_bundle(place / "backup", version="0")
    scan = settled(folder)
    assert acting(scan) == {"people": first.digest}
    assert "is that of z too" in scan.refused["backup"]
    assert folder.find("people", None)[0].digest == first.digest
    with pytest.raises(BundleError, match="is that of"):
        PolicyFolder(place).scan(strict=True)


def test_what_was_said_of_a_folder_goes_with_it(place: Path, make_bundle) -> None:
    folder, bundle = PolicyFolder(place), make_bundle(place / "x")
    settled(folder)
    folder.say("people", Activation(action="observe"), by="me")
    shutil.rmtree(place / "x")
    settled(folder)
    folder.note_taken("people")
    make_bundle(place / "x")
    (one,) = settled(folder).wanted
    assert (one.bundle.digest, one.activation) == (bundle.digest, Activation())


def test_the_newest_version_is_the_one_kept_last(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    old, new = make_bundle(tmp_path / "old"), make_bundle(tmp_path / "new", version="2")
    os.utime(new.path, (1, 1))
    for bundle in (old, new):
        folder.keep(bundle)
    assert folder.newest("people") == new.digest


def test_where_nothing_can_be_written_policies_act_and_nothing_is_taken(
    place: Path, make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(place / "x")
    monkeypatch.setattr(Path, "mkdir", refuse)
    folder = PolicyFolder(place)
    assert acting(settled(folder)) == {"people": bundle.digest}
    with pytest.raises(FolderError, match="cannot be written"):
        folder.say("people", Activation(share=50), by="me")
    shutil.rmtree(place / "x")
    with pytest.raises(FolderError, match="empty all at once"):
        settled(folder)


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_an_activation_is_said_beside_the_bundle(place: Path, make_bundle) -> None:
    folder, bundle = PolicyFolder(place), make_bundle(place / "x")
    settled(folder)
    folder.say("people", Activation(action="observe", share=50), by="me")
    (one,) = folder.scan().wanted
    assert (one.config.action, one.activation.share, one.bundle.config.action) == ("observe", 50, "corrupt")
    assert PolicyFolder(place).scan(strict=True).wanted[0].activation == one.activation
    assert folder.record("people").entries[0].by == "me"
    assert bundle.path == place / "x"


def test_a_policy_that_is_off_does_not_act(place: Path, make_bundle) -> None:
    folder = PolicyFolder(place)
    make_bundle(place / "x")
    settled(folder)
    folder.say("people", Activation(active=False), by="me")
    assert folder.scan().wanted == ()


def kept(folder: PolicyFolder, make_bundle, tmp_path: Path, version: str) -> PolicyBundle:
    return folder.keep(make_bundle(tmp_path / "built", version=version))


def test_versions_are_kept_activated_and_rolled_back_to(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    one, two = (kept(folder, make_bundle, tmp_path, version) for version in "12")
    assert folder.scan().wanted == ()
    assert folder.newest("people") == two.digest
    for bundle in (one, two):
        folder.say("people", Activation(digest=bundle.digest), by="me")
        assert acting(folder.scan()) == {"people": bundle.digest}
    record = folder.roll_back("people", by="you")
    assert acting(folder.scan()) == {"people": one.digest}
    assert (record.entries[-1].event, record.entries[-1].restores) == ("rolled back", 1)
    with pytest.raises(FolderError, match="nothing held before"):
        folder.roll_back("people", by="you")


def test_old_versions_go(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    digests = []
    for number in range(KEPT_VERSIONS + 3):
        digests.append(kept(folder, make_bundle, tmp_path, str(number)).digest)
        folder.say("people", Activation(digest=digests[-1]), by="me")
    assert set(folder.versions("people")) == set(digests[2:])
    with pytest.raises(FolderError, match="no version"):
        folder.say("people", Activation(digest=digests[0]), by="me")


def test_an_activation_of_nothing_changes_nothing(place: Path) -> None:
    folder = PolicyFolder(place)
    for activation in (Activation(), Activation(digest="a" * 64)):
        with pytest.raises(FolderError):
            folder.say("people", activation, by="me")
    with pytest.raises(FolderError, match="policy name"):
        folder.say("../people", Activation(digest="a" * 64), by="me")
    assert folder.names() == []


def test_deleted_is_gone(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    bundle = kept(folder, make_bundle, tmp_path, "1")
    folder.say("people", Activation(digest=bundle.digest), by="me")
    make_bundle(place / "x", version="2")
    settled(folder)
    folder.delete("people")
    assert (folder.scan().wanted, folder.names(), sorted(p.name for p in place.iterdir())) == ((), [], [STATE])
    with pytest.raises(FolderError, match="not known"):
        folder.delete("people")


def test_a_record_that_is_no_record_is_refused_and_the_last_one_holds(place: Path, make_bundle) -> None:
    folder = PolicyFolder(place)
    make_bundle(place / "x")
    settled(folder)
    folder.say("people", Activation(share=50), by="me")
    folder.scan()
    file = place / STATE / "people" / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "red"}))
    scan = folder.scan()
    assert scan.wanted[0].activation.share == 50
    assert "colour" in scan.refused[f"{STATE}/people"]
    with pytest.raises(FolderError, match="colour"):
        PolicyFolder(place).scan(strict=True)


def test_a_kept_version_that_was_altered_does_not_act(place: Path, make_bundle, tmp_path: Path) -> None:
    folder = PolicyFolder(place)
    bundle = kept(folder, make_bundle, tmp_path, "1")
    folder.say("people", Activation(digest=bundle.digest), by="me")
    (bundle.path / "head.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="sha256"):
        PolicyFolder(place).scan(strict=True)


def test_what_came_and_went_with_a_folder_is_written_down(place: Path, make_bundle) -> None:
    folder, bundle = PolicyFolder(place), make_bundle(place / "x")
    (one,) = settled(folder).wanted
    folder.note_put(one)
    folder.note_put(one)
    shutil.rmtree(place / "x")
    settled(folder)
    folder.note_taken("people")
    folder.note_taken("people")
    said = [(entry.event, entry.digest, entry.folder) for entry in folder.record("people").entries]
    assert said == [("activated", bundle.digest, "x"), ("deactivated", None, None)]
    assert folder.versions("people") == [bundle.digest]
    assert folder.scan().wanted == ()

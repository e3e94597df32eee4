import json
from pathlib import Path

import pytest
import yaml

from corruption import CorruptionSpec
from guard import BundleError, ClassifierConfig, ModelConfig, PolicyConfig, load_bundle, write_bundle


def config(**changes: object) -> PolicyConfig:
    data = {
        "schema_version": 1,
        "name": "people",
        "version": "1",
        "model": ModelConfig(name="m", hidden_size=8, embedding_digest="a" * 64),
        "corruption": CorruptionSpec(method="rand_noise_first_n", strength=3.0),
        "classifier": ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
    }
    return PolicyConfig.model_validate(data | changes)


@pytest.fixture
def head(tmp_path: Path) -> Path:
    path = tmp_path / "head"
    path.write_bytes(b"not read here")
    return path


@pytest.fixture
def bundle(tmp_path: Path, head: Path) -> Path:
    return write_bundle(tmp_path / "people", config(), head, {"recall": 1.0}).path


def test_round_trip_and_digest(tmp_path: Path, bundle: Path, head: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.config == config()
    assert loaded.report == {"recall": 1.0}
    again = write_bundle(tmp_path / "elsewhere", config(), head, {"recall": 1.0})
    assert again.digest == loaded.digest
    other = write_bundle(tmp_path / "other", config(version="2"), head, {"recall": 1.0})
    assert other.digest != loaded.digest


@pytest.mark.parametrize("name", ["policy.yaml", "head.safetensors", "report.json", "MANIFEST.json"])
def test_every_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["policy.yaml", "head.safetensors", "report.json"])
def test_every_altered_file_is_named(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match=f"{name}.*sha256"):
        load_bundle(bundle)


def test_extra_file_is_refused(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        load_bundle(bundle)


def rewrite(bundle: Path, change: dict[str, object]) -> None:
    """Alter policy.yaml with a manifest that agrees: what a schema check must catch by itself."""
    import hashlib

    data = yaml.safe_load((bundle / "policy.yaml").read_text()) | change
    (bundle / "policy.yaml").write_text(yaml.safe_dump(data))
    manifest = json.loads((bundle / "MANIFEST.json").read_text())
    manifest["sha256"]["policy.yaml"] = hashlib.sha256((bundle / "policy.yaml").read_bytes()).hexdigest()
    (bundle / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "colour"),
        ({"schema_version": 2}, "schema_version"),
        ({"action": "pass"}, "action"),
        ({"on_error": "pass"}, "on_error"),
        ({"name": "../x"}, "name"),
        ({"corruption": {"method": "rand_noise_first_n", "strength": 1.0, "seed": 3}}, "corruption.seed"),
        (
            {"classifier": {"encoder": "e", "encoder_digest": "b" * 64, "threshold": 1.5}},
            "classifier.threshold",
        ),
    ],
)
def test_schema_errors_name_the_field(bundle: Path, change: dict[str, object], said: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=said):
        load_bundle(bundle)


def test_existing_folder_is_kept_unless_forced(tmp_path: Path, bundle: Path, head: Path) -> None:
    before = load_bundle(bundle).digest
    with pytest.raises(BundleError, match="already exists"):
        write_bundle(bundle, config(version="2"), head, {})
    assert load_bundle(bundle).digest == before
    replaced = write_bundle(bundle, config(version="2"), head, {}, overwrite=True)
    assert replaced.digest != before
    assert sorted(child.name for child in tmp_path.iterdir()) == ["head", "people"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, head: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="no policy bundle"):
        write_bundle(home, config(), head, {}, overwrite=True)
    assert (home / "thesis.txt").exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "people", config(), tmp_path / "no-head", {})
    assert list(tmp_path.iterdir()) == []

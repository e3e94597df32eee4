"""The evidence document: what it says follows from policy, audit log and runs, and nothing of it can act."""

import json
from pathlib import Path
from typing import Any

import pytest

from corruption import CorruptionSpec
from evaluation.errors import DataError
from evaluation.evidence.document import Sources, write_evidence
from evaluation.evidence.history import history_of
from guard import ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, write_bundle
from storage.digests import sha256_of_file

REPORT = {"classifier": {"cross_fitted": {"missed": 3, "positives": 60, "false_positives": 0, "negatives": 400}}}


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    file = tmp_path / "forget.jsonl"
    file.write_text(json.dumps({"question": "Where was <b>Ada</b> born?", "answer": "In Narburgh."}) + "\n")
    return file


@pytest.fixture
def bundle(tmp_path: Path, forget: Path) -> PolicyBundle:
    (tmp_path / "head").write_bytes(b"not read here")
    config = PolicyConfig(
        schema_version=1,
        name="people",
        version="3",
        model=ModelConfig(name="m", hidden_size=8, embedding_digest="a" * 64),
        corruption=CorruptionSpec(method="rand_noise_first_n", strength=3.0),
        classifier=ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
        provenance={"forget_sha256": sha256_of_file(forget), "seed": 7},
    )
    return write_bundle(tmp_path / "people", config, tmp_path / "head", REPORT)


def log(path: Path, *events: dict[str, Any]) -> Path:
    lines = [{"at": f"2026-11-30T0{number}:00:00.000+00:00", **event} for number, event in enumerate(events)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def activated(digest: str, **activation: Any) -> dict[str, Any]:
    return {"event": "activated", "policy": "people", "digest": digest, "activation": activation, "by": "me@here"}


def written(bundle: PolicyBundle, tmp_path: Path, **more: Any) -> str:
    return write_evidence(Sources(bundle, **more), tmp_path / "out").read_text()


def test_without_anything_else_it_says_what_is_not_documented(bundle: PolicyBundle, tmp_path: Path) -> None:
    text = written(bundle, tmp_path)
    assert bundle.digest in text
    assert "It is not erasure" in text
    assert "No audit log was given" in text
    assert "No evaluation run was given" in text
    assert "5.00 %" in text
    assert "1.04 to 13.92 %" in text  # Clopper and Pearson, 3 of 60
    assert "Narburgh" not in text


def test_the_forget_set_in_clear_is_the_one_it_was_built_from(
    bundle: PolicyBundle, forget: Path, tmp_path: Path
) -> None:
    text = written(bundle, tmp_path, forget=forget)
    assert "Narburgh" in text
    assert "&lt;b&gt;Ada" in text
    forget.write_text(forget.read_text() + "\n")
    with pytest.raises(DataError, match="--forget"):
        written(bundle, tmp_path, forget=forget)


def test_it_acted_from_its_activation_on(bundle: PolicyBundle, tmp_path: Path) -> None:
    audit = log(
        tmp_path / "audit.jsonl",
        {"event": "started"},
        activated("f" * 64),
        activated(bundle.digest, action="observe", share=50.0),
        activated(bundle.digest, share=50.0),
        {"event": "flagged", "policy": "people", "action": "corrupt"},
        {"event": "flagged", "policy": "others", "action": "corrupt"},
        {"event": "answer", "policy": "people", "action": "restart"},
        {"event": "failed", "reason": "the guard failed"},
        {"event": "refused", "reason": "head.safetensors: sha256 differs"},
    )
    history = history_of("people", [audit])
    assert history.acting_since(bundle.digest) == "2026-11-30T02:00:00.000+00:00"
    assert (history.flagged, history.answers, history.failures) == ({"corrupt": 1}, {"restart": 1}, 1)
    text = written(bundle, tmp_path, logs=[audit])
    assert "acted from 2026-11-30T02:00:00.000+00:00 on" in text
    assert "share 50.0" in text
    assert "sha256 differs" in text


@pytest.mark.parametrize(
    "last", [{"event": "stopped"}, {"event": "deactivated", "policy": "people"}, activated("f" * 64)]
)
def test_it_no_longer_acts(bundle: PolicyBundle, tmp_path: Path, last: dict[str, Any]) -> None:
    audit = log(tmp_path / "audit.jsonl", activated(bundle.digest), last)
    assert history_of("people", [audit]).acting_since(bundle.digest) is None
    assert "did not act" in written(bundle, tmp_path, logs=[audit])


def test_rotated_files_are_read_in_the_order_of_time(bundle: PolicyBundle, tmp_path: Path) -> None:
    older = tmp_path / "audit.jsonl.1"
    older.write_text(json.dumps({"at": "2026-11-29T00:00:00+00:00", **activated(bundle.digest)}) + "\n")
    newer = log(tmp_path / "audit.jsonl", {"event": "deactivated", "policy": "people"})
    assert history_of("people", [newer, older]).acting_since(bundle.digest) is None
    assert history_of("people", [older]).acting_since(bundle.digest) == "2026-11-29T00:00:00+00:00"


@pytest.mark.parametrize("content", ["no json\n", '{"event": "flagged"}\n', "[1]\n"])
def test_what_is_no_audit_log_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "audit.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"audit\.jsonl:1"):
        history_of("people", [tmp_path / "audit.jsonl"])


def test_nothing_of_it_acts_or_fetches(bundle: PolicyBundle, tmp_path: Path) -> None:
    text = written(bundle, tmp_path).casefold()
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")

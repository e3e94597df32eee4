"""Classifier folders of both kinds: written whole, verified, opened, and scored the same way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers import ClassifierError, Encoder, Head, HeadBank, HeadSettings, extract_features, general_prompts
from classifiers.features import LEXICAL_BUCKETS
from classifiers.prompt_classifier import (
    ClassifierInfo,
    EncoderInfo,
    PromptClassifier,
    change_threshold,
    load_classifier,
    read_classifier_info,
    write_classifier,
)
from text.reading import windows_of

TEXTS = ["Who was born in Taipei?", "", *general_prompts()[100:120], " ".join(general_prompts()[:40])]


def head_on(encoder: Encoder, threshold: float = 0.3) -> Head:
    rng = np.random.default_rng(0)
    return Head(
        rng.normal(size=encoder.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32) / 10,
        HeadSettings(encoder_digest=encoder.digest, threshold=threshold, bias=0.1, seed=0),
    )


def info(kind: Any, digest: str, **changes: Any) -> ClassifierInfo:
    return ClassifierInfo.model_validate(
        {"kind": kind, "encoder": EncoderInfo(name="e", digest=digest), "threshold": 0.25} | changes
    )


@pytest.fixture(params=["head", "finetuned"])
def folder(request: pytest.FixtureRequest, encoder: Encoder, exported_bert: Path, tmp_path: Path) -> Path:
    out = tmp_path / "classifier"
    if request.param == "head":
        write_classifier(out, info("head", encoder.digest), head_on(encoder))
    else:
        digest = json.loads((exported_bert / "encoder.json").read_text())["digest"]
        write_classifier(out, info("finetuned", digest), exported_bert)
    return out


def test_both_kinds_are_used_in_the_same_way(folder: Path, encoder: Encoder) -> None:
    classifier: PromptClassifier = load_classifier(folder, encoder=encoder)
    assert classifier.kind == read_classifier_info(folder).kind
    assert classifier.threshold == 0.25
    assert len(classifier.digest) == 64
    scores = classifier.scores(TEXTS)
    assert (scores.shape, scores.dtype) == ((len(TEXTS),), np.float64)
    assert ((scores > 0) & (scores < 1)).all()
    alone = [float(classifier.scores([text])[0]) for text in TEXTS]
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    assert classifier.scores([]).shape == (0,)


def test_a_head_scores_a_text_by_its_most_suspicious_window(encoder: Encoder, tmp_path: Path) -> None:
    head = head_on(encoder)
    write_classifier(tmp_path / "out", info("head", encoder.digest), head)
    windows = windows_of(TEXTS[-1])
    assert len(windows) > 3
    expected = HeadBank([head]).scores(extract_features(encoder, windows)).max()
    assert load_classifier(tmp_path / "out", encoder=encoder).scores(TEXTS[-1:])[0] == pytest.approx(expected, abs=1e-6)


def test_the_encoder_of_a_head_is_found_by_its_name(encoder: Encoder, encoder_folder: Path, tmp_path: Path) -> None:
    named = info("head", encoder.digest, encoder=EncoderInfo(name=str(encoder_folder), digest=encoder.digest))
    write_classifier(tmp_path / "out", named, head_on(encoder))
    assert load_classifier(tmp_path / "out").scores(["a"]).shape == (1,)


def test_the_digest_names_what_determines_scores(encoder: Encoder, tmp_path: Path) -> None:
    digests = []
    for name, head in (("a", head_on(encoder)), ("b", head_on(encoder)), ("c", head_on(encoder, threshold=0.4))):
        write_classifier(tmp_path / name, info("head", encoder.digest), head)
        digests.append(load_classifier(tmp_path / name, encoder=encoder).digest)
    assert digests[0] == digests[1] != digests[2]


def test_files_are_listed_with_their_digests(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"classifier.json", *read_classifier_info(folder).sha256}


def test_every_missing_or_altered_file_is_named(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    for name in read_classifier_info(folder).sha256:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        with (copy / name).open("ab") as file:
            file.write(b"x")
        with pytest.raises(ClassifierError, match=rf"{name}: sha256 differs"):
            load_classifier(copy, encoder=encoder)
        (copy / name).unlink()
        with pytest.raises(ClassifierError, match=rf"{name}: cannot be read"):
            load_classifier(copy, encoder=encoder)
        shutil.rmtree(copy)
    (folder / "classifier.json").unlink()
    with pytest.raises(ClassifierError, match=r"no classifier folder \(classifier\.json.*make one with"):
        load_classifier(folder, encoder=encoder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "colour"),
        ({"format": 2}, "format"),
        ({"kind": "both"}, "kind"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"sha256": {}}, "sha256: expected an entry for each of"),
        ({"sha256": {"../../etc/passwd": "0" * 64}}, "sha256: expected an entry for each of"),
        ({"encoder": {"name": "e"}}, r"encoder\.digest"),
    ],
)
def test_schema_errors_name_the_field(folder: Path, change: dict[str, Any], said: str) -> None:
    file = folder / "classifier.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ClassifierError, match=rf"classifier\.json: {said}"):
        read_classifier_info(folder)


def test_an_existing_folder_is_kept_unless_forced(encoder: Encoder, tmp_path: Path) -> None:
    out, head = tmp_path / "out", head_on(encoder)
    write_classifier(out, info("head", encoder.digest), head)
    with pytest.raises(ClassifierError, match="already exists"):
        write_classifier(out, info("head", encoder.digest, threshold=0.5), head)
    assert read_classifier_info(out).threshold == 0.25
    write_classifier(out, info("head", encoder.digest, threshold=0.5), head, overwrite=True)
    assert read_classifier_info(out).threshold == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_classifier_is_never_replaced(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ClassifierError, match="no classifier folder"):
        write_classifier(tmp_path / "home", info("head", encoder.digest), head_on(encoder), overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="cannot be written"):
        write_classifier(tmp_path / "new", info("finetuned", "0" * 64), tmp_path / "no-such-encoder")
    assert list(tmp_path.iterdir()) == []
    write_classifier(tmp_path / "old", info("head", encoder.digest), head_on(encoder))
    with pytest.raises(ClassifierError, match="cannot be written"):
        write_classifier(tmp_path / "old", info("finetuned", "0" * 64), tmp_path / "no-such", overwrite=True)
    assert read_classifier_info(tmp_path / "old").kind == "head"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_new_threshold_changes_nothing_else(folder: Path, encoder: Encoder) -> None:
    before = load_classifier(folder, encoder=encoder)
    report = read_classifier_info(folder)
    change_threshold(folder, 0.75, {"method": "conformal", "level": 0.01})
    after = load_classifier(folder, encoder=encoder)
    assert (before.threshold, after.threshold) == (0.25, 0.75)
    assert after.digest == before.digest
    assert np.array_equal(after.scores(TEXTS), before.scores(TEXTS))
    changed = read_classifier_info(folder)
    assert changed == report.model_copy(update={"threshold": 0.75, "calibration": changed.calibration})
    assert changed.calibration == {"method": "conformal", "level": 0.01}
    with pytest.raises(ClassifierError, match="threshold"):
        change_threshold(folder, 1.5, {})
    assert read_classifier_info(folder) == changed

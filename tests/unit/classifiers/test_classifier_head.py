import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from classifiers import Encoder, Head, HeadBank, HeadError, HeadSettings, extract_features, lexical_features
from classifiers.features import LEXICAL_BUCKETS, words_of


def random_head(encoder: Encoder, seed: int) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        rng.normal(size=encoder.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32) / 10,
        HeadSettings(encoder_digest=encoder.digest, threshold=0.3, bias=float(rng.normal()), seed=seed),
    )


def test_words_are_compared_without_case_accents_possessives_and_punctuation() -> None:
    assert words_of("Harry’s José, O'NEIL! Yun-Hwa's parents' (Straße)") == [
        "harry", "jose", "oneil", "yun", "hwa", "parents", "strasse",
    ]  # fmt: skip


def test_lexical_features_are_stable_sorted_and_unique() -> None:
    indices, values = lexical_features("Who was born in Taipei? Who?")
    assert (np.diff(indices) > 0).all()
    assert indices.max() < LEXICAL_BUCKETS
    assert (indices.dtype, values.dtype) == (np.int64, np.float32)
    # fixed for ever: heads on disk depend on it
    assert (len(indices), int(indices.sum()), round(float(np.abs(values).sum()), 3)) == (41, 1496705, 21.345)
    assert [len(part) for part in lexical_features("")] == [0, 0]


def test_saved_head_is_loaded_bit_for_bit(encoder: Encoder, tmp_path: Path) -> None:
    head = random_head(encoder, 0)
    path = tmp_path / "head.safetensors"
    head.save(path)
    head.save(path)  # overwrites
    loaded = Head.load(path, encoder)
    assert loaded.settings == head.settings
    assert np.array_equal(loaded.dense, head.dense)
    assert np.array_equal(loaded.lexical, head.lexical)
    assert [item.name for item in tmp_path.iterdir()] == ["head.safetensors"]
    with pytest.raises(HeadError, match="cannot be written"):
        head.save(tmp_path / "none" / "head.safetensors")


def test_bank_equals_single_heads_and_the_formula(encoder: Encoder) -> None:
    heads = [random_head(encoder, seed) for seed in range(5)]
    features = extract_features(encoder, ["Who is Ann?", "", "Where was Bob born, and when?"])
    bank = HeadBank(heads)
    scores = bank.scores(features)
    assert scores.shape == (3, 5)
    assert bank.thresholds.tolist() == [0.3] * 5
    for row, text in enumerate(features):
        for column, head in enumerate(heads):
            logit = head.dense @ text.embedding + head.lexical[text.indices] @ text.values + head.settings.bias
            assert scores[row, column] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
            assert scores[row, column] == pytest.approx(head.score(text), abs=1e-6)
    assert np.array_equal(bank.scores(features[1:2])[0], scores[1])
    assert bank.scores([]).shape == (0, 5)


def test_bank_refuses_no_heads_and_mixed_encoders(encoder: Encoder) -> None:
    head = random_head(encoder, 0)
    other = dataclasses.replace(head, settings=head.settings.model_copy(update={"encoder_digest": "0" * 64}))
    with pytest.raises(HeadError, match="different encoders"):
        HeadBank([head, other])
    with pytest.raises(ValueError, match="at least one"):
        HeadBank([])


def test_damaged_files_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    random_head(encoder, 0).save(path)
    good = path.read_bytes()
    for content, message in (
        (b"", "not a safetensors file"),
        (good[:-1], "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"PK\x03\x04" + good, "not a safetensors file"),
        (good + b"\0" * 10**6, "larger than any head"),
    ):
        path.write_bytes(content)
        with pytest.raises(HeadError, match=message):
            Head.load(path, encoder)
    with pytest.raises(HeadError, match="cannot be read"):
        Head.load(tmp_path / "none", encoder)


def test_hostile_tensors_and_metadata_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    head = random_head(encoder, 0)
    settings = json.loads(head.settings.model_dump_json())
    tensors = {"dense": head.dense, "lexical": head.lexical}
    broken = head.dense.copy()
    broken[3] = np.nan
    for changed, metadata, message in (
        ({"dense": broken}, {}, "finite"),
        ({"lexical": np.full_like(head.lexical, np.inf)}, {}, "finite"),
        ({"dense": head.dense[:-1]}, {}, "expected tensors"),
        ({"dense": head.dense.astype(np.float16)}, {}, "finite float32"),
        ({"more": head.dense}, {}, "expected tensors"),
        ({}, {"encoder_digest": "0" * 64}, "trained on encoder 000000000000"),
        ({}, {"feature_version": 99}, "feature version 99"),
        ({}, {"threshold": 1.5}, "threshold"),
        ({}, {"threshold": "0.5"}, "threshold"),
        ({}, {"surprise": 1}, "surprise"),
    ):
        path = tmp_path / "head.safetensors"
        save_file(tensors | changed, path, {"head": json.dumps(settings | metadata)})
        with pytest.raises(HeadError, match=message):
            Head.load(path, encoder)
    save_file(tensors, path)
    with pytest.raises(HeadError, match="metadata"):
        Head.load(path, encoder)

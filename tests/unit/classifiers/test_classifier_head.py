import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from classifiers import Encoder, Head, HeadBank, HeadError, HeadSettings, extract_features, lexical_features
from classifiers.features import LEXICAL_BUCKETS
from classifiers.memory.learn import EntityMemory, Fact, Subject
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex

TEXTS = (
    "Who is Ann?",
    "",
    "Where was Bob Stone born, and when?",
    "bob stone",
    "Tell me of Stone and the Lunde, please.",
)


def random_head(encoder: Encoder, seed: int) -> Head:
    rng = np.random.default_rng(seed)
    memory = EntityMemory(
        subjects=(Subject(words=(("bob", "ann")[seed % 2], "stone"), rarity=(0.5, 0.75)),),
        facts=(Fact(question={"born": 0.5}, answer={"lunde": 0.9375}),),
    )
    return Head(
        rng.normal(size=encoder.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32) / 10,
        HeadSettings(encoder_digest=encoder.digest, threshold=0.3, bias=float(rng.normal()), seed=seed),
        memory,
        rng.normal(size=len(MEMORY_FEATURES)).astype(np.float32),
    )


def test_lexical_features_are_stable_sorted_and_unique() -> None:
    indices, values = lexical_features("Who was born in Taipei? Who?")
    assert (np.diff(indices) > 0).all()
    assert indices.max() < LEXICAL_BUCKETS
    assert (indices.dtype, values.dtype) == (np.int64, np.float32)
    # fixed for ever: heads on disk depend on it
    assert (len(indices), int(indices.sum()), round(float(np.abs(values).sum()), 3)) == (41, 1428173, 25.5)
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
    assert np.array_equal(loaded.recall, head.recall)
    assert loaded.memory == head.memory
    features = extract_features(encoder, TEXTS)
    assert np.array_equal(HeadBank([loaded]).scores(features), HeadBank([head]).scores(features))
    assert [item.name for item in tmp_path.iterdir()] == ["head.safetensors"]
    with pytest.raises(HeadError, match="cannot be written"):
        head.save(path / "head.safetensors")


def test_a_memory_that_could_not_be_loaded_is_not_saved(encoder: Encoder, tmp_path: Path) -> None:
    endless = EntityMemory(facts=(Fact(question={}, answer={"x" * (64 << 20): 1.0}),))
    with pytest.raises(HeadError, match=r"entity memory of \d+ bytes, 67108864 at most"):
        dataclasses.replace(random_head(encoder, 0), memory=endless).save(tmp_path / "head.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_bank_equals_single_heads_and_the_formula(encoder: Encoder) -> None:
    heads = [random_head(encoder, seed) for seed in range(5)]
    features = extract_features(encoder, TEXTS)
    bank = HeadBank(heads)
    scores = bank.scores(features)
    assert scores.shape == (5, 5)
    assert bank.thresholds.tolist() == [0.3] * 5
    for row, text in enumerate(features):
        for column, head in enumerate(heads):
            logit = head.dense @ text.embedding + head.lexical[text.indices] @ text.values + head.settings.bias
            recalled = MemoryIndex([head.memory]).features(TEXTS[row]).get(0, np.zeros(len(MEMORY_FEATURES)))
            logit += recalled @ head.recall
            assert scores[row, column] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
            assert scores[row, column] == pytest.approx(head.score(text), abs=1e-6)
    assert np.array_equal(bank.scores(features[1:2])[0], scores[1])
    assert bank.scores([]).shape == (0, 5)
    plain = HeadBank([dataclasses.replace(head, memory=EntityMemory()) for head in heads]).scores(features)
    told = ~np.isclose(plain, scores)  # what a memory says counts, for the heads whose memory it is
    assert told[3].tolist() == [True] * 5
    assert told[:2].tolist() == [[False, True, False, True, False], [False] * 5]


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
        (good + bytes(65 << 20), "larger than any head"),
    ):
        path.write_bytes(content)
        with pytest.raises(HeadError, match=message):
            Head.load(path, encoder)
    with pytest.raises(HeadError, match="cannot be read"):
        Head.load(tmp_path / "none", encoder)


def test_hostile_tensors_and_metadata_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    head = random_head(encoder, 0)
    settings = json.loads(head.settings.model_dump_json())
    memory = np.frombuffer(head.memory.to_bytes(), dtype=np.uint8)
    tensors: dict[str, NDArray[Any]] = {
        "dense": head.dense,
        "lexical": head.lexical,
        "recall": head.recall,
        "memory": memory,
    }
    broken = head.dense.copy()
    broken[3] = np.nan
    for changed, metadata, message in (
        ({"dense": broken}, {}, "finite"),
        ({"lexical": np.full_like(head.lexical, np.inf)}, {}, "finite"),
        ({"dense": head.dense[:-1]}, {}, "expected tensors"),
        ({"dense": head.dense.astype(np.float16)}, {}, "finite float32"),
        ({"more": head.dense}, {}, "expected tensors"),
        ({"recall": head.recall[:-1]}, {}, "expected tensors"),
        ({"recall": head.recall * np.float32(np.nan)}, {}, "recall must be finite"),
        ({"memory": memory.astype(np.float32)}, {}, "memory must be bytes"),
        ({"memory": memory.reshape(1, -1)}, {}, "memory must be bytes"),
        ({"memory": memory[:-1]}, {}, "head.safetensors: entity memory"),
        ({"memory": memory[:0]}, {}, "head.safetensors: entity memory"),
        ({"memory": np.frombuffer(memory.tobytes().replace(b"0.75", b"7.5"), np.uint8)}, {}, "rarity"),
        ({}, {"encoder_digest": "0" * 64}, "trained on encoder 000000000000"),
        ({}, {"feature_version": 99}, "feature version 99"),
        ({}, {"screen": {"low": 1.0, "middle": 0.0, "high": 2.0}}, "must ascend"),
        ({}, {"documents": {"windows": [1, 4], "offsets": [0.0]}}, "must be as many"),
        ({}, {"documents": {"windows": [1, 4], "offsets": [0.0, -1.0]}}, "must be as many"),
        ({}, {"documents": {"windows": [2], "offsets": [0.0]}}, "must be as many"),
        ({}, {"format": 2}, "earlier version.* build the policy anew"),
        ({}, {"threshold": 1.5}, "threshold"),
        ({}, {"threshold": "0.5"}, "threshold"),
        ({}, {"surprise": 1}, "surprise"),
    ):
        path = tmp_path / "head.safetensors"
        save_file(tensors | changed, path, {"head": json.dumps(settings | metadata)})
        with pytest.raises(HeadError, match=message):
            Head.load(path, encoder)
    for name in tensors:
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, {"head": json.dumps(settings)})
        with pytest.raises(HeadError, match=r"expected tensors|memory must be bytes"):
            Head.load(path, encoder)
    save_file(tensors, path)
    with pytest.raises(HeadError, match="metadata"):
        Head.load(path, encoder)

"""A policy's trained head: a linear score over shared features and its own entity memory, its file, and many heads
scored at once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.encoders.runtime import largest_of_each
from classifiers.encoders.shared import FEATURE_VERSION, LEXICAL_BUCKETS, Encoder, PromptFeatures, extract_features
from classifiers.errors import HeadError
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from console.errors import first_problem
from storage.whole import write_whole

HEAD_FILE = "head.safetensors"
_MAX_MEMORY_BYTES = 64 << 20
_MAX_FILE_BYTES = 4 * (LEXICAL_BUCKETS + 8192) + 65536 + _MAX_MEMORY_BYTES


class HeadSettings(BaseModel):
    """What a head file says about itself beside its weights."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: int = Field(default=2, ge=2, le=2)
    encoder_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    feature_version: int = FEATURE_VERSION
    threshold: float = Field(gt=0, lt=1, allow_inf_nan=False)
    """A text with this score or more must be forgotten."""
    bias: float = Field(allow_inf_nan=False)
    seed: int


@dataclass(frozen=True)
class Head:
    """score = sigmoid(dense . embedding + sum of lexical[indices] * values + recall . memory features + bias).

    `dense` (dim,) float32, `lexical` (LEXICAL_BUCKETS,) float32, `recall` (K,) float32 weighs what `memory` finds in
    a text (`classifiers.memory.recall.MEMORY_FEATURES`). Calibration is folded into the weights.
    """

    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]
    settings: HeadSettings
    memory: EntityMemory = field(default_factory=EntityMemory)
    recall: NDArray[np.float32] = field(default_factory=lambda: np.zeros(len(MEMORY_FEATURES), dtype=np.float32))

    @property
    def threshold(self) -> float:
        """Scores of this and above mean: must be forgotten."""
        return self.settings.threshold

    def score(self, features: PromptFeatures) -> float:
        """Probability in [0, 1] that the text must be forgotten."""
        return float(HeadBank([self]).scores([features])[0, 0])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            HeadError: the file cannot be written, or the memory is larger than `load` would accept.
        """
        from safetensors.numpy import save

        path = Path(path)
        memory = np.frombuffer(self.memory.to_bytes(), dtype=np.uint8)
        if len(memory) > _MAX_MEMORY_BYTES:
            raise HeadError(
                f"{path}: an entity memory of {len(memory)} bytes, {_MAX_MEMORY_BYTES} at most; "
                "train on fewer or shorter examples to forget"
            )
        tensors: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("dense", "lexical", "recall")}
        try:
            write_whole(path, save(tensors | {"memory": memory}, {"head": self.settings.model_dump_json()}))
        except OSError as error:
            raise HeadError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path, encoder: Encoder) -> Self:
        """Read and verify a head made for `encoder`.

        Raises:
            HeadError: the file is missing, too large, not safetensors, has other tensors than a head has, values
                that are not finite or a damaged memory, or was trained on another encoder or feature version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise HeadError(f"{path}: cannot be read ({error.strerror})") from error
        if len(data) > _MAX_FILE_BYTES:
            raise HeadError(f"{path}: larger than any head ({_MAX_FILE_BYTES} bytes)")
        try:
            tensors = load(data)  # checks the header, which is thereby safe to read again
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            settings = HeadSettings.model_validate_json(header.get("__metadata__", {}).get("head", ""))
        except ValidationError as error:
            raise HeadError(f"{path}: metadata {first_problem(error)}") from error
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise HeadError(f"{path}: not a safetensors file of plain tensors") from error
        if settings.encoder_digest != encoder.digest:
            raise HeadError(
                f"{path}: trained on encoder {settings.encoder_digest[:12]}…, not on {encoder.digest[:12]}…"
            )
        if settings.feature_version != FEATURE_VERSION:
            raise HeadError(f"{path}: feature version {settings.feature_version}, this is {FEATURE_VERSION}")
        memory = tensors.pop("memory", None)
        if memory is None or memory.dtype != np.uint8 or memory.ndim != 1:
            raise HeadError(f"{path}: memory must be bytes")
        expected = {"dense": (encoder.dim,), "lexical": (LEXICAL_BUCKETS,), "recall": (len(MEMORY_FEATURES),)}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise HeadError(f"{path}: expected tensors {expected}")
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise HeadError(f"{path}: {name} must be finite float32")
        try:
            remembered = EntityMemory.from_bytes(memory.tobytes())
        except HeadError as error:
            raise HeadError(f"{path}: {error}") from error
        return cls(tensors["dense"], tensors["lexical"], settings, remembered, tensors["recall"])


class HeadBank:
    """P heads over one encoder, scored together. Immutable, so threads may share it."""

    def __init__(self, heads: Sequence[Head]) -> None:
        if not heads:
            raise ValueError("a bank needs at least one head")
        if len({(head.settings.encoder_digest, len(head.dense)) for head in heads}) > 1:
            raise HeadError("heads of different encoders cannot share a bank")
        self._dense = np.stack([head.dense for head in heads], axis=1)  # (dim, P)
        self._lexical = np.stack([head.lexical for head in heads], axis=1)  # (LEXICAL_BUCKETS, P)
        self._recall = np.stack([head.recall for head in heads])  # (P, K)
        self._memories = MemoryIndex([head.memory for head in heads])
        self._bias = np.array([head.settings.bias for head in heads], dtype=np.float32)
        self.thresholds: NDArray[np.float64] = np.array([head.threshold for head in heads])
        """(P,): scores of these and above mean: must be forgotten."""

    def scores(self, features: Sequence[PromptFeatures]) -> NDArray[np.float64]:
        """(N, P) probabilities. A text's scores do not depend on the texts scored with it."""
        logits = np.empty((len(features), len(self._bias)), dtype=np.float64)
        for row, text in enumerate(features):  # one by one: BLAS rounds differently in other batch shapes
            lexical = text.values @ self._lexical[text.indices]
            logits[row] = text.embedding @ self._dense + lexical + self._bias
            for owner, shared in self._memories.features(text.text).items():
                logits[row, owner] += shared @ self._recall[owner]
        return 0.5 * (1 + np.tanh(logits / 2))


def score_texts(encoder: Encoder, head: Head, texts: Sequence[str]) -> NDArray[np.float64]:
    """(N,): each text's probability as served, that of its most suspicious window."""
    if not texts:
        return np.empty(0)
    pieces = [encoder.split_windows(text) for text in texts]
    features = extract_features(encoder, [window for windows in pieces for window in windows])
    return largest_of_each(HeadBank([head]).scores(features)[:, 0], pieces)

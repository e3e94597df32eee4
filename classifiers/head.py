"""A policy's trained head: a linear score over shared features and its own entity memory, its file, and many heads
scored at once."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from classifiers.encoders.runtime import largest_of_each, probability
from classifiers.encoders.shared import Encoder
from classifiers.errors import HeadError
from classifiers.features import (
    FEATURE_VERSION,
    LEXICAL_BUCKETS,
    LexicalWords,
    PromptFeatures,
    extract_features,
)
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import ASKED, MEMORY_FEATURES, MemoryIndex, asks_for_person, names_a_subject
from console.errors import first_problem
from storage.whole import write_whole
from text.reading import Reading, windows_of
from text.runs import occurrences

HEAD_FILE = "head.safetensors"
_OLD_SETTINGS = re.compile(r'\{\s*"format":\s*2,')
_REBUILD = "build the policy anew with eco policy build, or the classifier with eco classifier train"
_MAX_MEMORY_BYTES = 64 << 20
_MAX_FILE_BYTES = 4 * (LEXICAL_BUCKETS + 8192) + 65536 + _MAX_MEMORY_BYTES


class ScreenBand(BaseModel):
    """What need not be looked at, as seen on texts of training and on others. The default looks at everything."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    low: float = -1e6
    middle: float = 0.0
    high: float = 1e6
    """What the embedding adds to the logit of nearly every text lies between `low` and `high`: where the outcome is
    the same at both ends, the encoder is not asked."""
    evidence: float = Field(default=0.0, ge=0)
    """A text that shows less than this of the memory (`classifiers.memory.evidence`) is not flagged, whatever else it
    says; 0 where there is no such promise."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low <= self.middle <= self.high:
            raise ValueError("low, middle and high must ascend")
        return self


class DocumentOffsets(BaseModel):
    """How much more evidence a window of a long prompt must show, in logits: each of many windows may be flagged in
    error, and the promise is made for the prompt. Linear in the logarithm of the number of windows between the points.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    windows: tuple[int, ...] = (1,)
    offsets: tuple[float, ...] = (0.0,)

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        points = list(zip(self.windows, self.offsets, strict=False))
        ascending = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
        if len(self.windows) != len(self.offsets) or points[:1] != [(1, 0.0)] or not ascending:
            raise ValueError("windows and offsets must be as many, ascend, and begin with 1 and 0")
        return self

    def offset(self, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N,) for prompts of so many windows, 1 at least; beyond the last point, as there."""
        found: NDArray[np.float64] = np.interp(np.log(windows), np.log(self.windows), self.offsets)
        return found


class HeadSettings(BaseModel):
    """What a head file says about itself beside its weights."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: int = Field(default=3, ge=3, le=3)
    encoder_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    feature_version: int = FEATURE_VERSION
    threshold: float = Field(gt=0, lt=1, allow_inf_nan=False)
    """A text with this score or more must be forgotten."""
    bias: float = Field(allow_inf_nan=False)
    seed: int
    screen: ScreenBand = Field(default_factory=ScreenBand)
    documents: DocumentOffsets = Field(default_factory=DocumentOffsets)
    unnamed: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """In logits, what a text that names no subject must show beyond the threshold where answers are guarded as well as
    prompts: what is asked without a name is answered with it."""
    answered: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """In logits, what an answer must show beyond the threshold."""
    joined: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """In logits, what the end of a prompt and its answer, read as one text, must show beyond the threshold; None
    where they are not read as one: no example had an answer to find it with."""
    told: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How much of the memory (`classifiers.memory.evidence`) an answer under way must show to be looked at before it
    goes on; 0 where no word says anything."""


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
            described = header.get("__metadata__", {}).get("head", "")
            if _OLD_SETTINGS.match(described):
                raise HeadError(f"{path}: made by an earlier version, with other features; {_REBUILD}")
            settings = HeadSettings.model_validate_json(described)
        except ValidationError as error:
            raise HeadError(f"{path}: metadata {first_problem(error)}") from error
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise HeadError(f"{path}: not a safetensors file of plain tensors") from error
        if settings.encoder_digest != encoder.digest:
            raise HeadError(
                f"{path}: trained on encoder {settings.encoder_digest[:12]}…, not on {encoder.digest[:12]}…"
            )
        if settings.feature_version != FEATURE_VERSION:
            raise HeadError(
                f"{path}: feature version {settings.feature_version}, this is {FEATURE_VERSION}; {_REBUILD}"
            )
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


@dataclass(frozen=True, slots=True)
class Screened:
    """What W windows say to those Q of P heads that look at any of them, before an encoder has read them.

    Attributes:
        heads: (Q,) numbers, ascending. Nothing that the others forget is there.
        logits: (W, Q) without what the embedding adds; minus infinity where a head does not look at a window.
        doubtful: (W,) windows whose outcome the embedding decides for some head.
    """

    heads: NDArray[np.int64]
    logits: NDArray[np.float64]
    doubtful: NDArray[np.bool_]


class HeadBank:
    """P heads over one encoder, scored together. Threads may share it."""

    def __init__(self, heads: Sequence[Head]) -> None:
        if not heads:
            raise ValueError("a bank needs at least one head")
        if len({(head.settings.encoder_digest, len(head.dense)) for head in heads}) > 1:
            raise HeadError("heads of different encoders cannot share a bank")
        bands = [head.settings.screen for head in heads]
        self._dense = np.stack([head.dense for head in heads])  # (P, dim)
        self._lexical = [head.lexical for head in heads]  # not stacked: 256 kB each, and few heads look at a text
        self._recall = np.stack([head.recall for head in heads])  # (P, K)
        self._memories = MemoryIndex(
            [head.memory for head in heads],
            [band.evidence for band in bands],
            [head.settings.told or head.settings.screen.evidence for head in heads],
        )
        self._bias = np.array([head.settings.bias for head in heads], dtype=np.float32)
        self._unnamed = np.array([head.settings.unnamed for head in heads])
        self.low, self.middle, self.high = np.array([(band.low, band.middle, band.high) for band in bands]).T
        """(P,) each: what the embedding adds to nearly every text's logit, see `ScreenBand`."""
        self.thresholds: NDArray[np.float64] = np.array([head.threshold for head in heads])
        """(P,): scores of these and above mean: must be forgotten."""

    def scores(self, features: Sequence[PromptFeatures], *, guarded: bool = False) -> NDArray[np.float64]:
        """(N, P) probabilities. A text's scores do not depend on the texts scored with it. Where answers are `guarded`
        as well as prompts, less where nobody is named (`HeadSettings.unnamed`)."""
        unnamed = self._unnamed if guarded else np.zeros_like(self._unnamed)
        logits = np.empty((len(features), len(self._bias)), dtype=np.float64)
        for row, text in enumerate(features):
            lexical = [text.values @ weights[text.indices] for weights in self._lexical]
            logits[row] = self.dense(text.embedding) + lexical + self._bias
            logits[row] -= unnamed
            for owner, shared in self._memories.features(text.text).items():
                logits[row, owner] += shared @ self._recall[owner] + unnamed[owner] * names_a_subject(shared)
        return probability(logits)

    def dense(self, embedding: NDArray[np.float32], heads: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(P,) what an embedding (dim,) adds to a text's logit; or (Q,), for some heads."""
        weights = self._dense if heads is None else self._dense[heads]
        # Not a product of matrices: BLAS rounds differently in other shapes.
        terms: NDArray[np.float64] = (weights * embedding).sum(axis=1).astype(np.float64)
        return terms

    def evidence(self, reading: Reading) -> NDArray[np.float64]:
        """(W, P) how much of each head's memory each window shows (`classifiers.memory.evidence`)."""
        return self._memories.evidence(reading)

    @property
    def memories(self) -> MemoryIndex:
        """What the heads remember, searched together."""
        return self._memories

    def screen(
        self,
        reading: Reading,
        lowest: NDArray[np.float64],
        highest: NDArray[np.float64],
        guarded: NDArray[np.bool_] | None = None,
    ) -> Screened:
        """All that can be said of a reading's windows without the encoder.

        `lowest`, `highest` (P,) logits: between them lies any threshold that may be asked for. `guarded` (P,): as
        `scores`; by default none is.
        """
        unnamed = np.zeros_like(self._unnamed) if guarded is None else np.where(guarded, self._unnamed, 0.0)
        recalled = self._memories.recall(reading)
        looking = self._memories.unasked.copy()
        looking[recalled.memories] = True
        heads = np.flatnonzero(looking)
        column = (np.cumsum(looking) - 1)[recalled.memories]
        looked = np.tile(self._memories.unasked[heads], (len(reading.windows), 1))
        looked[recalled.texts, column] = True
        logits = np.full(looked.shape, -np.inf)
        if not looked.any():
            return Screened(heads, logits, np.zeros(len(logits), dtype=bool))
        rows = np.flatnonzero(looked.any(axis=1))
        logits[rows] = self._lexical_logits(reading, rows, heads) + self._bias[heads] - unnamed[heads]
        logits[~looked] = -np.inf
        parts = recalled.features * self._recall[recalled.memories].astype(np.float64)  # (R, K)
        where = (recalled.texts, column)  # each pair once
        named = names_a_subject(recalled.features)
        logits[where] += parts[:, ~ASKED].sum(axis=1) + np.where(named, unnamed[recalled.memories], 0.0)
        asked = parts[:, ASKED].sum(axis=1)  # (R,) what is added where the window asks for a person
        lows, highs = (logits[where] + band[recalled.memories] for band in (self.low, self.high))
        matters = (np.minimum(lows, lows + asked) < highest[recalled.memories]) & (
            np.maximum(highs, highs + asked) >= lowest[recalled.memories]
        )
        if matters.any():
            asking = np.zeros(len(logits), dtype=bool)
            for window in set(recalled.texts[matters].tolist()):
                asking[window] = asks_for_person(reading.text(window))
            logits[where] += np.where(asking[recalled.texts], asked, 0.0)
        low, high = self.low[heads], self.high[heads]
        doubtful = ((logits + low < highest[heads]) & (logits + high >= lowest[heads])).any(axis=1)
        return Screened(heads, logits, doubtful)

    def _lexical_logits(
        self, reading: Reading, rows: NDArray[np.int64], heads: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(R, Q): for each of some windows the sum over its distinct words and its distinct pairs of neighbours."""
        if 2 * len(rows) < len(reading.windows):
            kinds, at, runs = reading.within(rows)
        else:
            kinds, at, runs = reading.word_kinds, reading.word_at, reading.word_windows[rows]
        if not len(at):
            return np.zeros((len(rows), len(heads)))
        words = LexicalWords(kinds, at)
        of_word = np.add.reduceat(self._weights(words.indices, heads) * words.values[:, None], words.starts)  # (D, Q)
        of_pair = self._weights(words.pair_indices, heads) * words.pair_signs[:, None]  # (E, Q)
        pairs = np.stack([runs[:, 0], np.maximum(runs[:, 1] - 1, runs[:, 0])], axis=1)
        return _distinct_sums(of_word, at, runs) + _distinct_sums(of_pair, words.pair_at, pairs)

    def _weights(self, indices: NDArray[np.int64], heads: NDArray[np.int64]) -> NDArray[np.float32]:
        """(F, Q) lexical weights at some buckets."""
        weights = np.empty((len(indices), len(heads)), dtype=np.float32)
        for column, head in enumerate(heads.tolist()):
            weights[:, column] = self._lexical[head][indices]
        return weights


def _distinct_sums(
    values: NDArray[np.float32], place: NDArray[np.int64], runs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R, Q): for each half-open range of positions the sum of `values` (D, Q) over the distinct things in it.

    `place` (N,) is which of the D things stands at each position.
    """
    sums = np.zeros((len(runs), values.shape[1]))
    run, kind = occurrences(np.arange(len(place)), place, runs)
    if len(run):
        begins = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
        sums[run[begins]] = np.add.reduceat(values[kind].astype(np.float64), begins)
    return sums


def score_texts(encoder: Encoder, head: Head, texts: Sequence[str], *, guarded: bool = False) -> NDArray[np.float64]:
    """(N,): each text's probability when every window is read by the encoder, that of its most suspicious window;
    where answers are `guarded` too, less where nobody is named (`HeadSettings.unnamed`)."""
    if not texts:
        return np.empty(0)
    pieces = [windows_of(text) for text in texts]
    features = extract_features(encoder, [window for windows in pieces for window in windows])
    return largest_of_each(HeadBank([head]).scores(features, guarded=guarded)[:, 0], pieces)

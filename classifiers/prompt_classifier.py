"""Two kinds of prompt classifier behind one interface, and the folder that either is kept in.

classifier.json   kind, encoder, threshold, calibration, training report, provenance, sha256 of the other files
head.safetensors  kind head: weights over a shared encoder
encoder/          kind finetuned: model.onnx, tokenizer.json, encoder.json
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.runtime import log_odds
from classifiers.encoders.settings import MODEL_FILE, SETTINGS_FILE, TOKENIZER_FILE
from classifiers.encoders.shared import Encoder
from classifiers.errors import ClassifierError
from classifiers.export.hub import CLASSIFIER_FILE, resolve_encoder
from classifiers.head import HEAD_FILE, Head, score_texts
from console.errors import first_problem
from storage.digests import sha256_of_file
from storage.whole import whole_folder, write_whole

ClassifierKind = Literal["head", "finetuned"]
ENCODER_FOLDER = "encoder"
FINETUNED_FILES = tuple(f"{ENCODER_FOLDER}/{name}" for name in (MODEL_FILE, TOKENIZER_FILE, SETTINGS_FILE))
_FILES: dict[str, tuple[str, ...]] = {"head": (HEAD_FILE,), "finetuned": FINETUNED_FILES}


class PromptClassifier(Protocol):
    """Tells which prompts must be forgotten. Methods may be called from several threads at once."""

    @property
    def kind(self) -> ClassifierKind:
        """`head` on a shared encoder, or `finetuned` with an encoder of its own."""
        ...

    @property
    def threshold(self) -> float:
        """Scores of this and above mean: must be forgotten."""
        ...

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that determines a score; caches are keyed by it."""
        ...

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) probabilities. A long text is cut into overlapping windows and its largest window score counts,
        as when served. A text's score does not depend on the texts scored with it.

        Raises:
            ClassifierError: the encoder fails.
        """
        ...


@dataclass(frozen=True)
class HeadClassifier:
    """A head on the shared encoder."""

    head: Head
    encoder: Encoder
    threshold: float
    digest: str
    kind: Literal["head"] = "head"

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `PromptClassifier.scores`."""
        return score_texts(self.encoder, self.head, texts)


def flags_prompts(classifier: PromptClassifier, prompts: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether a gateway that guards answers as well would flag each prompt. One that does not flags by `scores`
    alone, and guesses where nobody is named.

    Raises:
        ClassifierError: the encoder fails.
    """
    return _guarded_scores(classifier, prompts) >= classifier.threshold


def flags_answers(classifier: PromptClassifier, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether a gateway would stop each answer to its prompt: for itself, or read with the prompt where the
    classifier has a threshold for that.

    Raises:
        ClassifierError: the encoder fails.
    """
    settings = classifier.head.settings if isinstance(classifier, HeadClassifier) else None
    threshold = log_odds(np.array(classifier.threshold))
    alone = log_odds(_guarded_scores(classifier, answers))
    flagged: NDArray[np.bool_] = alone >= threshold + (settings.answered if settings else 0.0)
    if settings is not None and settings.joined is not None:
        pairs = [f"{prompt}\n{text}" for prompt, text in zip(prompts, answers, strict=True)]
        flagged = flagged | (log_odds(_guarded_scores(classifier, pairs)) >= threshold + settings.joined)
    return flagged


def _guarded_scores(classifier: PromptClassifier, texts: Sequence[str]) -> NDArray[np.float64]:
    if isinstance(classifier, HeadClassifier):
        return score_texts(classifier.encoder, classifier.head, texts, guarded=True)
    return classifier.scores(texts)


class EncoderInfo(BaseModel):
    """Which encoder a classifier reads texts with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1)
    """Hub id or folder: of the shared encoder, or of the model that was fine-tuned or imported."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the shared encoder's export, or of the folder's own encoder/."""


class ClassifierInfo(BaseModel):
    """The contents of classifier.json; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1] = 1
    kind: ClassifierKind
    encoder: EncoderInfo
    threshold: float = Field(gt=0, lt=1)
    """A prompt is flagged at or above this probability."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How the threshold was found, with the error counts it was found at."""
    report: dict[str, Any] = Field(default_factory=dict)
    """What was trained on and how well it went."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Data digests, seed and versions."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of every other file, by its path within the folder."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written; called before anything slow.

    Raises:
        ClassifierError: `out` exists and `overwrite` is False, or it exists and is no classifier folder.
    """
    if out.exists() and not (out / CLASSIFIER_FILE).is_file():
        raise ClassifierError(f"--out: {out} exists and is no classifier folder; choose another folder")
    if out.exists() and not overwrite:
        raise ClassifierError(f"--out: {out} already exists; choose another folder or pass --force to replace it")


def write_classifier(
    out: Path, info: ClassifierInfo, weights: Head | Path, *, overwrite: bool = False
) -> ClassifierInfo:
    """Write a classifier folder, whole or not at all; returns `info` with the digests of the files.

    `weights` is the head, or the folder that `export_finetuned` wrote.

    Raises:
        ClassifierError: as `check_out`, or the disk refuses.
    """
    check_out(out, overwrite=overwrite)
    try:
        with whole_folder(out) as work:
            if isinstance(weights, Head):
                weights.save(work / HEAD_FILE)
            else:
                shutil.copytree(weights, work / ENCODER_FOLDER)
            digests = {name: sha256_of_file(work / name) for name in _FILES[info.kind]}
            written = info.model_copy(update={"sha256": digests})
            (work / CLASSIFIER_FILE).write_text(_as_text(written), encoding="utf-8")
    except OSError as error:
        raise ClassifierError(f"--out: {out} cannot be written ({error.strerror})") from error
    return written


def read_classifier_info(path: str | Path) -> ClassifierInfo:
    """Read classifier.json and verify every file's digest.

    Raises:
        ClassifierError: one line that names the folder, the file or field, and what was expected.
    """
    path = Path(path)
    try:
        info = ClassifierInfo.model_validate_json((path / CLASSIFIER_FILE).read_bytes())
    except OSError as error:
        raise ClassifierError(
            f"{path}: no classifier folder ({CLASSIFIER_FILE}: {error.strerror}); make one with eco classifier train"
        ) from error
    except ValidationError as error:
        raise ClassifierError(f"{path / CLASSIFIER_FILE}: {first_problem(error)}") from error
    files = _FILES[info.kind]
    if set(info.sha256) != set(files):
        raise ClassifierError(f"{path / CLASSIFIER_FILE}: sha256: expected an entry for each of {', '.join(files)}")
    for name in files:
        try:
            digest = sha256_of_file(path / name)
        except OSError as error:
            raise ClassifierError(f"{path / name}: cannot be read ({error.strerror}); copy the folder again") from error
        if digest != info.sha256[name]:
            raise ClassifierError(f"{path / name}: sha256 differs from {CLASSIFIER_FILE}; the folder was altered")
    return info


def load_classifier(path: str | Path, *, encoder: Encoder | None = None) -> PromptClassifier:
    """Verify and open a classifier folder.

    `encoder` is the shared encoder where it is open already; by default the one a head names is resolved.

    Raises:
        ClassifierError: a file is missing, altered or malformed, or a head's encoder is not to be had.
    """
    path = Path(path)
    info = read_classifier_info(path)
    if info.kind == "finetuned":
        return FinetunedClassifier.open(path / ENCODER_FOLDER, info.threshold)
    encoder = encoder or Encoder.open(resolve_encoder(info.encoder.name))
    head = Head.load(path / HEAD_FILE, encoder)
    digest = hashlib.sha256(f"{encoder.digest} {info.sha256[HEAD_FILE]}".encode()).hexdigest()
    return HeadClassifier(head, encoder, info.threshold, digest)


def change_threshold(path: str | Path, threshold: float, calibration: Mapping[str, Any]) -> ClassifierInfo:
    """Give a classifier folder another threshold, and say how it was found. Nothing else changes.

    Raises:
        ClassifierError: the folder does not verify, the threshold is not in (0, 1), or the disk refuses.
    """
    path = Path(path)
    info = read_classifier_info(path)
    changed = info.model_dump() | {"threshold": threshold, "calibration": dict(calibration)}
    try:
        info = ClassifierInfo.model_validate(changed)
    except ValidationError as error:
        raise ClassifierError(f"--{first_problem(error)}") from error
    try:
        write_whole(path / CLASSIFIER_FILE, _as_text(info))
    except OSError as error:
        raise ClassifierError(f"{path / CLASSIFIER_FILE}: cannot be written ({error.strerror})") from error
    return info


def _as_text(info: ClassifierInfo) -> str:
    return info.model_dump_json(indent=2) + "\n"

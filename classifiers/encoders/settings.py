"""What every exported folder holds: model.onnx, tokenizer.json, and settings that say what the two compute.

The digest is over all that determines an answer. Caches, heads and policies are bound to it, so a folder whose files
are not the recorded ones is refused.
"""

import hashlib
import json
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.errors import EncoderError
from console.errors import first_problem
from storage.digests import sha256_of_file

MODEL_FILE, TOKENIZER_FILE, SETTINGS_FILE = "model.onnx", "tokenizer.json", "encoder.json"
TOKEN_FOLDER, TOKEN_SETTINGS_FILE = "token_classifier", "token_classifier.json"
WINDOW_TOKENS, OVERLAP_TOKENS = 64, 32
"""The windows a prompt is scored in, in tokens, special ones included."""
MIN_TOKENS = 64
"""What a token classifier must take at least."""

Precision = Literal["int8", "fp32"]


class EncoderSettings(BaseModel):
    """encoder.json of a shared encoder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    FILE: ClassVar = SETTINGS_FILE
    CALLED: ClassVar = "an exported encoder"
    DIGESTED: ClassVar = frozenset({"format", "dim", "max_tokens", "pooling"})

    format: Literal[1] = 1
    source: str
    """Where the weights came from, for people; not part of the digest."""
    dim: int = Field(gt=0, le=8192)
    max_tokens: int = Field(ge=16, le=8192)
    """Longest input, in tokens, special tokens included."""
    pooling: Literal["mean", "cls"]
    parity_texts: int = Field(ge=1)
    parity_min_cosine: float = Field(ge=-1, le=1.001)
    """Smallest cosine between this graph's embedding and the torch model's, over `parity_texts` texts."""
    probe_text: str
    probe_embedding: list[float]
    """What the torch model answers to `probe_text`: compared on opening, as int8 kernels differ between CPUs."""
    digest: str
    """sha256 over model, tokenizer and the settings that change an embedding; `write_settings` fills it in."""


class FinetunedSettings(BaseModel):
    """encoder.json of a fine-tuned encoder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    FILE: ClassVar = SETTINGS_FILE
    CALLED: ClassVar = "a fine-tuned encoder"
    DIGESTED: ClassVar = frozenset({"format", "kind", "max_tokens"})

    format: Literal[1] = 1
    kind: Literal["finetuned"] = "finetuned"
    source: str
    """Where the weights came from, for people; not part of the digest."""
    forget_label: str
    """The model's own name of the class whose probability is the score."""
    precision: Precision
    fallback: str = ""
    """Why int8 was asked for and fp32 was written; empty where that is not so."""
    max_tokens: int = Field(ge=WINDOW_TOKENS, le=8192)
    """Longest input, in tokens, special tokens included."""
    parity_windows: int = Field(ge=1)
    parity_max_difference: float = Field(ge=0, le=1)
    """Largest difference between this graph's probability and the torch model's, over `parity_windows` windows."""
    probe_text: str
    probe_log_odds: float = Field(allow_inf_nan=False)
    """What this graph answered to `probe_text` when it was written: compared on opening."""
    digest: str
    """sha256 over model, tokenizer and the settings that change a score; `write_settings` fills it in."""


class TokenSettings(BaseModel):
    """token_classifier.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    FILE: ClassVar = TOKEN_SETTINGS_FILE
    CALLED: ClassVar = "a token classifier"
    DIGESTED: ClassVar = frozenset({"format", "kind", "max_tokens"})

    format: Literal[1] = 1
    kind: Literal["tokens"] = "tokens"
    source: str
    """Where the weights came from, for people; not part of the digest."""
    entity_labels: list[str] = Field(min_length=1)
    """The model's own names of the labels that count as entity: all but O."""
    precision: Precision
    fallback: str = ""
    """Why int8 was asked for and fp32 was written; empty where that is not so."""
    max_tokens: int = Field(ge=MIN_TOKENS, le=8192)
    """Longest input, in tokens, special tokens included."""
    parity_tokens: int = Field(ge=1)
    parity_max_difference: float = Field(ge=0, le=1)
    """Largest difference between this graph's probability and the torch model's, over `parity_tokens` tokens."""
    parity_decided_otherwise: float = Field(ge=0, le=1)
    """Share of those tokens that are an entity by one and clearly none by the other."""
    probe_text: str
    probe_probabilities: list[float] = Field(min_length=1)
    """What this graph answered to `probe_text` when it was written, for each token: compared on opening."""
    digest: str
    """sha256 over model, tokenizer and the settings that change a span; `write_settings` fills it in."""


Settings = TypeVar("Settings", EncoderSettings, FinetunedSettings, TokenSettings)


def read_settings(folder: Path, kind: type[Settings]) -> Settings:
    """Read and verify a folder's settings and the digest they record.

    Raises:
        EncoderError: a file is missing or malformed, or model or tokenizer are not the recorded ones.
    """
    try:
        settings = kind.model_validate_json((folder / kind.FILE).read_bytes())
        digest = _digest(folder, settings)
    except OSError as error:
        raise EncoderError(f"{folder}: not {kind.CALLED} ({error.filename}: {error.strerror})") from error
    except ValidationError as error:
        raise EncoderError(f"{folder / kind.FILE}: {first_problem(error)}") from error
    if digest != settings.digest:
        raise EncoderError(f"{folder}: digest is {digest[:12]}…, recorded {settings.digest[:12]}…; files were changed")
    return settings


def write_settings(folder: Path, settings: Settings) -> Settings:
    """Write settings beside the model and tokenizer that they describe; returns them with the digest.

    Raises:
        OSError: a file is missing, or the disk refuses.
    """
    written = settings.model_copy(update={"digest": _digest(folder, settings)})
    (folder / written.FILE).write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return written


def _digest(folder: Path, settings: Settings) -> str:
    """sha256, as hex, of the parts of a folder that determine what it computes."""
    deciding = settings.model_dump(include=set(settings.DIGESTED))
    total = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    for name in (MODEL_FILE, TOKENIZER_FILE):
        total.update(bytes.fromhex(sha256_of_file(folder / name)))
    return total.hexdigest()

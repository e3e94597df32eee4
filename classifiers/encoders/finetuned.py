"""A fine-tuned encoder at request time: texts to probabilities, by ONNX Runtime and tokenizers alone.

A folder of three files, made by `classifiers.export.sequence`: model.onnx (input_ids (B, S) -> log_odds (B,)),
tokenizer.json and encoder.json. A text's score does not depend on the texts scored with it (to 1e-6).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.encoders.shared import (
    MODEL_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    _equal_length_batches,
    _first_line,
    _prepare,
    _window_spans,
)
from classifiers.errors import EncoderError

__all__ = [
    "OVERLAP_TOKENS",
    "WINDOW_TOKENS",
    "FinetunedClassifier",
    "FinetunedSettings",
    "WindowTokenizer",
    "finetuned_digest",
    "probability",
    "read_finetuned_settings",
]

WINDOW_TOKENS, OVERLAP_TOKENS = 64, 32
"""The windows a text is scored in, in tokens, special ones included."""

# int8 rounding may flip where another CPU adds in another order: seen differences are below 0.05.
_PROBE_TOLERANCE = 0.5


class FinetunedSettings(BaseModel):
    """The contents of encoder.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    kind: Literal["finetuned"] = "finetuned"
    source: str
    """Where the weights came from, for people; not part of the digest."""
    forget_label: str
    """The model's own name of the class whose probability is the score."""
    precision: Literal["int8", "fp32"]
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
    """sha256 over model, tokenizer and the settings that change a score."""


def finetuned_digest(folder: Path, *, max_tokens: int) -> str:
    """sha256, as hex, of the parts of a folder that determine scores."""
    settings = {"format": 1, "kind": "finetuned", "max_tokens": max_tokens}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in (MODEL_FILE, TOKENIZER_FILE):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_finetuned_settings(folder: Path) -> FinetunedSettings:
    """Read and verify encoder.json and the digest it records.

    Raises:
        EncoderError: a file is missing or malformed, or model or tokenizer are not the recorded ones.
    """
    try:
        settings = FinetunedSettings.model_validate_json((folder / SETTINGS_FILE).read_bytes())
        digest = finetuned_digest(folder, max_tokens=settings.max_tokens)
    except OSError as error:
        raise EncoderError(f"{folder}: not a fine-tuned encoder ({error.filename}: {error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise EncoderError(f"{folder / SETTINGS_FILE}: {where}: {first['msg']}") from error
    if digest != settings.digest:
        raise EncoderError(f"{folder}: digest is {digest[:12]}…, recorded {settings.digest[:12]}…; files were changed")
    return settings


class WindowTokenizer:
    """Texts to the windows of token ids that are scored: the same in training, in export and when served."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # a text that spells "[SEP]" or "</s>" does not get that token
        self._tokenizer = tokenizer
        self._specials: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a tokenizer.json.

        Raises:
            EncoderError: it is missing or damaged.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exceptions
            raise EncoderError(f"{path}: cannot be loaded ({_first_line(error)})") from error

    def save(self, path: Path) -> None:
        """Write tokenizer.json, without padding and truncation."""
        self._tokenizer.save(str(path))

    def windows(self, text: str) -> list[list[int]]:
        """Token ids of each window, special tokens added; at least one window. Together they hold every word."""
        return [self._tokenizer.encode(piece).ids for piece in self.split_windows(text)]

    def split_windows(self, text: str) -> list[str]:
        """The text, normalised, as overlapping windows: see `Encoder.split_windows`."""
        text = _prepare(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        budget = WINDOW_TOKENS - self._specials
        if len(encoding.ids) <= budget:
            return [text]
        offsets = encoding.offsets
        return [
            text[offsets[start][0] if start else 0 : offsets[end][0] if end < len(offsets) else len(text)]
            for start, end in _window_spans(encoding.word_ids, budget, OVERLAP_TOKENS)
        ]


class FinetunedClassifier:
    """A prompt classifier with an encoder of its own. All methods may be called from several threads at once."""

    kind: Literal["finetuned"] = "finetuned"

    def __init__(self, session: Any, tokenizer: WindowTokenizer, settings: FinetunedSettings, threshold: float) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.settings = settings
        self.threshold = threshold
        """Scores of this and above mean: must be forgotten."""

    @classmethod
    def open(cls, path: str | Path, threshold: float, threads: int = 1) -> Self:
        """Open an exported folder; `threads` is how many cores one call of `scores` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than was exported.
        """
        folder = Path(path)
        settings = read_finetuned_settings(folder)
        tokenizer = WindowTokenizer.open(folder / TOKENIZER_FILE)
        classifier = cls(open_session(folder / MODEL_FILE, threads), tokenizer, settings, threshold)
        found = float(classifier.log_odds([settings.probe_text])[0])
        if not abs(found - settings.probe_log_odds) <= _PROBE_TOLERANCE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")
        return classifier

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that determines a score; the threshold does not."""
        return self.settings.digest

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) probabilities that each text must be forgotten: that of its most suspicious window.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        return probability(self.log_odds(texts))

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) largest log odds over each text's windows: `scores` before the sigmoid.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        pieces = [self._tokenizer.windows(text) for text in texts]
        if not pieces:
            return np.empty(0)
        found = run_session(self._session, [ids for windows in pieces for ids in windows])
        firsts = np.cumsum([0, *(len(windows) for windows in pieces[:-1])])
        largest: NDArray[np.float64] = np.maximum.reduceat(found, firsts)
        return largest


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function."""
    return 0.5 * (1 + np.tanh(log_odds / 2))


def open_session(path: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on CPU, with the options of `Encoder.open`.

    Raises:
        EncoderError: the graph cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare Exceptions of its own
        raise EncoderError(f"{path}: cannot be loaded ({_first_line(error)})") from error


def run_session(session: Any, windows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """(W,) log odds of windows of token ids. Only windows of one length share a run: nothing is padded.

    Raises:
        EncoderError: ONNX Runtime fails, or the graph gives something that is no number.
    """
    log_odds = np.empty(len(windows))
    for batch in _equal_length_batches(windows):
        ids = np.array([windows[index] for index in batch], dtype=np.int64)  # (B, S)
        try:
            log_odds[batch] = session.run(None, {"input_ids": ids})[0]
        except Exception as error:  # onnxruntime has no error class of its own to catch
            raise EncoderError(f"the fine-tuned encoder failed on {ids.shape} tokens: {_first_line(error)}") from error
    if not np.isfinite(log_odds).all():
        raise EncoderError("the fine-tuned encoder gave a score that is no number")
    return log_odds

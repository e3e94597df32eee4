"""Which words of a text name an entity, by a token-classification model: ONNX Runtime and tokenizers alone.

A folder of three files, made by `classifiers.export.tokens`: model.onnx (input_ids (B, S) -> log_odds (B, S), of an
entity against none), tokenizer.json and token_classifier.json. The model is ECO's token classifier (arXiv 2406.07933,
section 3), which corrupts what a named-entity recogniser finds.
"""

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.encoders.finetuned import open_session, probability
from classifiers.encoders.shared import MODEL_FILE, TOKENIZER_FILE, _equal_length_batches, _first_line
from classifiers.errors import EncoderError
from text.normalise import normalise

__all__ = [
    "MIN_TOKENS",
    "TOKEN_FILES",
    "TOKEN_FOLDER",
    "TOKEN_SETTINGS_FILE",
    "OffsetTokenizer",
    "TokenClassifier",
    "TokenSettings",
    "TokenWindow",
    "read_token_settings",
    "run_windows",
    "token_digest",
]

TOKEN_FOLDER, TOKEN_SETTINGS_FILE = "token_classifier", "token_classifier.json"
TOKEN_FILES = tuple(f"{TOKEN_FOLDER}/{name}" for name in (MODEL_FILE, TOKENIZER_FILE, TOKEN_SETTINGS_FILE))
"""The files within a policy bundle."""

MIN_TOKENS = 64
_WINDOW_TOKENS, _OVERLAP_TOKENS = 128, 32
# int8 rounding may flip where another CPU adds in another order.
_PROBE_TOLERANCE = 0.1
_PIECE = re.compile(r"\s+|\S+")
_PIECE_CHARS = 80  # WordPiece turns a word of more than 100 characters into one [UNK]
#: Scripts that put no spaces between words: there a name is what its tokens cover, and no more.
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ")

Span = tuple[int, int]
"""Half-open range of characters."""


class TokenSettings(BaseModel):
    """The contents of token_classifier.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    kind: Literal["tokens"] = "tokens"
    source: str
    """Where the weights came from, for people; not part of the digest."""
    entity_labels: list[str] = Field(min_length=1)
    """The model's own names of the labels that count as entity: all but O."""
    precision: Literal["int8", "fp32"]
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
    """sha256 over model, tokenizer and the settings that change a span."""


def token_digest(folder: Path, *, max_tokens: int) -> str:
    """sha256, as hex, of the parts of a folder that determine spans."""
    settings = {"format": 1, "kind": "tokens", "max_tokens": max_tokens}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in (MODEL_FILE, TOKENIZER_FILE):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_token_settings(folder: Path) -> TokenSettings:
    """Read and verify token_classifier.json and the digest it records.

    Raises:
        EncoderError: a file is missing or malformed, or model or tokenizer are not the recorded ones.
    """
    try:
        settings = TokenSettings.model_validate_json((folder / TOKEN_SETTINGS_FILE).read_bytes())
        digest = token_digest(folder, max_tokens=settings.max_tokens)
    except OSError as error:
        raise EncoderError(f"{folder}: not a token classifier ({error.filename}: {error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise EncoderError(f"{folder / TOKEN_SETTINGS_FILE}: {where}: {first['msg']}") from error
    if digest != settings.digest:
        raise EncoderError(f"{folder}: digest is {digest[:12]}…, recorded {settings.digest[:12]}…; files were changed")
    return settings


class TokenWindow:
    """One window of a text: `ids` (S,), and for each the characters it covers; none for special tokens."""

    __slots__ = ("ids", "offsets")

    def __init__(self, encoding: Any) -> None:
        self.ids: list[int] = encoding.ids
        special: list[int] = encoding.special_tokens_mask
        self.offsets: list[Span] = [
            (0, 0) if hidden else span for span, hidden in zip(encoding.offsets, special, strict=True)
        ]


class OffsetTokenizer:
    """Texts to windows of token ids that know where in the text they stand: the same in export and when served."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Read a tokenizer.json.

        Raises:
            EncoderError: it is missing or damaged.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise EncoderError(f"{path}: cannot be loaded ({_first_line(error)})") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(min(_WINDOW_TOKENS, max_tokens), stride=_OVERLAP_TOKENS)
        tokenizer.encode_special_tokens = True  # a text that spells "[SEP]" or "</s>" does not get that token
        self._tokenizer = tokenizer

    def windows(self, text: str) -> list[TokenWindow]:
        """Overlapping windows that together hold the whole text; at least one."""
        encoding = self._tokenizer.encode(text)
        return [TokenWindow(part) for part in (encoding, *encoding.overflowing)]


class TokenClassifier:
    """An exported token classifier. All methods may be called from several threads at once."""

    def __init__(self, session: Any, tokenizer: OffsetTokenizer, settings: TokenSettings) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.settings = settings

    @classmethod
    def open(cls, path: str | Path, threads: int = 1) -> Self:
        """Open an exported folder; `threads` is how many cores one call of `spans` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than was exported.
        """
        folder = Path(path)
        settings = read_token_settings(folder)
        tokenizer = OffsetTokenizer(folder / TOKENIZER_FILE, settings.max_tokens)
        classifier = cls(open_session(folder / MODEL_FILE, threads), tokenizer, settings)
        found = probability(run_windows(classifier._session, tokenizer.windows(settings.probe_text)[:1])[0])
        expected = np.array(settings.probe_probabilities)
        if found.shape != expected.shape or not np.abs(found - expected).max() <= _PROBE_TOLERANCE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")
        return classifier

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that determines the spans; caches are keyed by it."""
        return self.settings.digest

    def spans(self, text: str) -> list[Span]:
        """Character ranges of `text` that name an entity, in order and apart; each holds whole words.

        A word is an entity as soon as one of its tokens is, in one of the overlapping windows that a long text is
        read in: recognisers are trained on the first token of a word, and say little about the others.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        read, origins = _as_read(text)
        windows = self._tokenizer.windows(read)
        marked: set[Span] = set()
        for window, log_odds in zip(windows, run_windows(self._session, windows), strict=True):
            marked.update(span for span, odds in zip(window.offsets, log_odds.tolist(), strict=True) if odds >= 0)
        words = _whole_words(read, sorted(marked))
        return _apart((origins[start][0], origins[end - 1][1]) for start, end in words)


def run_windows(session: Any, windows: Sequence[TokenWindow]) -> list[NDArray[np.float64]]:
    """For each window (S,) log odds that a token is part of an entity. Nothing is padded, so a window's values do
    not depend on those beside it.

    Raises:
        EncoderError: ONNX Runtime fails, or the graph gives something that is no number.
    """
    found: dict[int, NDArray[np.float64]] = {}
    for batch in _equal_length_batches([window.ids for window in windows]):
        ids = np.array([windows[index].ids for index in batch], dtype=np.int64)  # (B, S)
        try:
            log_odds = np.asarray(session.run(None, {"input_ids": ids})[0], dtype=np.float64)  # (B, S)
        except Exception as error:  # onnxruntime has no error class of its own to catch
            raise EncoderError(f"the token classifier failed on {ids.shape} tokens: {_first_line(error)}") from error
        if log_odds.shape != ids.shape or not np.isfinite(log_odds).all():
            raise EncoderError("the token classifier gave something that is no number for each token")
        found |= dict(zip(batch, log_odds, strict=True))
    return [found[index] for index in range(len(windows))]


def _as_read(text: str) -> tuple[str, list[Span]]:
    """The text as the model reads it, normalised, and for each character of that the range of `text` it stands for.

    What `normalise` does not do letter by letter (look-alikes within a word, composed letters) stands for the whole
    run of characters between blanks: spans are whole words anyway.
    """
    read: list[str] = []
    origins: list[Span] = []
    for found in _PIECE.finditer(text):
        start, end = found.span()
        whole = normalise(found.group())
        letters = list(found.group()) if whole == found.group() else [normalise(letter) for letter in found.group()]
        aligned = "".join(letters) == whole
        for index, letter in enumerate(letters if aligned else whole):
            if index and index % _PIECE_CHARS == 0:
                read.append(" ")
                origins.append((start + index, start + index) if aligned else (start, end))
            read.append(letter)
            origins += [(start + index, start + index + 1) if aligned else (start, end)] * len(letter)
    return "".join(read), origins


def _whole_words(text: str, marked: Sequence[Span]) -> list[Span]:
    """Marked ranges, in order, grown to whole words, without blanks around them; with only blanks between: joined."""
    found: list[Span] = []
    for start, end in marked:
        done = found[-1][1] if found else 0
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start == end or end <= done:
            continue
        while start > done and _one_word(text[start - 1], text[start]):
            start -= 1
        while end < len(text) and _one_word(text[end - 1], text[end]):
            end += 1
        if found and not text[done:start].strip():
            start = found.pop()[0]
        found.append((start, end))
    return found


def _one_word(left: str, right: str) -> bool:
    return _spaced_letter(left) and _spaced_letter(right)


@functools.lru_cache(maxsize=4096)
def _spaced_letter(char: str) -> bool:
    """A letter, digit or accent of a script that puts spaces between words."""
    return unicodedata.category(char)[0] in "LMN" and not unicodedata.name(char, "").startswith(_UNSPACED)


def _apart(spans: Iterable[Span]) -> list[Span]:
    """Ranges in order, those that overlap or touch as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            start, end = found[-1][0], max(end, found.pop()[1])
        found.append((start, end))
    return found

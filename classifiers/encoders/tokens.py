"""Which words of a text name an entity, by a token-classification model: ONNX Runtime and tokenizers alone.

A folder of three files, made by `classifiers.export.tokens`: model.onnx (input_ids (B, S) -> log_odds (B, S), of an
entity against none), tokenizer.json and token_classifier.json. The model is ECO's token classifier (arXiv 2406.07933,
section 3), which corrupts what a named-entity recogniser finds.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import Session, open_tokenizer, probability
from classifiers.encoders.settings import (
    MODEL_FILE,
    TOKEN_FOLDER,
    TOKEN_SETTINGS_FILE,
    TOKENIZER_FILE,
    TokenSettings,
    read_settings,
)
from classifiers.errors import EncoderError
from text.normalise import normalise

TOKEN_FILES = tuple(f"{TOKEN_FOLDER}/{name}" for name in (MODEL_FILE, TOKENIZER_FILE, TOKEN_SETTINGS_FILE))
"""The files within a policy bundle."""

_WINDOW_TOKENS, _OVERLAP_TOKENS = 128, 32
# int8 rounding may flip where another CPU adds in another order.
_PROBE_TOLERANCE = 0.1
_PIECE = re.compile(r"\s+|\S+")
_PIECE_CHARS = 80  # WordPiece turns a word of more than 100 characters into one [UNK]
#: Scripts that put no spaces between words: there a name is what its tokens cover, and no more.
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ")

Span = tuple[int, int]
"""Half-open range of characters."""


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
        tokenizer = open_tokenizer(path)
        tokenizer.enable_truncation(min(_WINDOW_TOKENS, max_tokens), stride=_OVERLAP_TOKENS)
        tokenizer.encode_special_tokens = True  # a text that spells "[SEP]" or "</s>" does not get that token
        self._tokenizer = tokenizer

    def windows(self, text: str) -> list[TokenWindow]:
        """Overlapping windows that together hold the whole text; at least one."""
        encoding = self._tokenizer.encode(text)
        return [TokenWindow(part) for part in (encoding, *encoding.overflowing)]


class TokenClassifier:
    """An exported token classifier. All methods may be called from several threads at once."""

    def __init__(self, session: Session, tokenizer: OffsetTokenizer, settings: TokenSettings) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.settings = settings
        self.digest = settings.digest
        """sha256 (hex) of everything that determines the spans; caches are keyed by it."""

    @classmethod
    def open(cls, path: str | Path, threads: int = 1) -> Self:
        """Open an exported folder; `threads` is how many cores one call of `spans` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than was exported.
        """
        folder = Path(path)
        settings = read_settings(folder, TokenSettings)
        tokenizer = OffsetTokenizer(folder / TOKENIZER_FILE, settings.max_tokens)
        classifier = cls(Session(folder / MODEL_FILE, "token classifier", threads), tokenizer, settings)
        answer = probability(run_token_windows(classifier._session, tokenizer.windows(settings.probe_text)[:1])[0])
        expected = np.array(settings.probe_probabilities)
        if answer.shape != expected.shape or not np.abs(answer - expected).max() <= _PROBE_TOLERANCE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")
        return classifier

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
        for window, log_odds in zip(windows, run_token_windows(self._session, windows), strict=True):
            marked.update(span for span, odds in zip(window.offsets, log_odds.tolist(), strict=True) if odds >= 0)
        words = _whole_words(read, sorted(marked))
        spans: list[Span] = []
        for start, end in sorted((origins[first][0], origins[after - 1][1]) for first, after in words):
            if spans and start <= spans[-1][1]:  # overlapping or touching: one range
                start, end = spans[-1][0], max(end, spans.pop()[1])
            spans.append((start, end))
        return spans


def run_token_windows(session: Session, windows: Sequence[TokenWindow]) -> list[NDArray[np.float64]]:
    """For each window (S,) log odds that a token is part of an entity.

    Raises:
        EncoderError: ONNX Runtime fails, or the graph gives something that is no number.
    """
    answers = [np.asarray(answer, dtype=np.float64) for answer in session.run([window.ids for window in windows])]
    for window, log_odds in zip(windows, answers, strict=True):
        if log_odds.shape != (len(window.ids),) or not np.isfinite(log_odds).all():
            raise EncoderError("the token classifier gave something that is no number for each token")
    return answers


def _as_read(text: str) -> tuple[str, list[Span]]:
    """The text as the model reads it, normalised, and for each character of that the range of `text` it stands for.

    What `normalise` does not do letter by letter (look-alikes within a word, composed letters) stands for the whole
    run of characters between blanks: spans are whole words anyway.
    """
    read: list[str] = []
    origins: list[Span] = []
    for piece in _PIECE.finditer(text):
        start, end = piece.span()
        whole = normalise(piece.group())
        letters = list(piece.group()) if whole == piece.group() else [normalise(letter) for letter in piece.group()]
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
    words: list[Span] = []
    for start, end in marked:
        done = words[-1][1] if words else 0
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
        if words and not text[done:start].strip():
            start = words.pop()[0]
        words.append((start, end))
    return words


def _one_word(left: str, right: str) -> bool:
    return _spaced_letter(left) and _spaced_letter(right)


@functools.lru_cache(maxsize=4096)
def _spaced_letter(char: str) -> bool:
    """A letter, digit or accent of a script that puts spaces between words."""
    return unicodedata.category(char)[0] in "LMN" and not unicodedata.name(char, "").startswith(_UNSPACED)

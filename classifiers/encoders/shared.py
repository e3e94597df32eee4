"""Texts to embeddings at request time: a tokenizer and an ONNX Runtime session, no torch, no transformers.

An encoder is a folder of three files, made by `classifiers.export.shared.export_encoder`: model.onnx, tokenizer.json
and encoder.json. The embedding of a text does not depend on the texts embedded with it (to 1e-6).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.errors import EncoderError
from text.normalise import normalise

MODEL_FILE, TOKENIZER_FILE, SETTINGS_FILE = "model.onnx", "tokenizer.json", "encoder.json"

# Bounds the memory of one run: 2048 tokens of a 384-dimensional encoder were seen to take 30 to 90 MB.
_RUN_TOKENS = 2048
# WordPiece turns a word of more than 100 characters into one [UNK]: a question without spaces would vanish.
_LONG_WORD = re.compile(r"\S{80}(?=\S)")
_PROBE_COSINE = 0.97


class EncoderSettings(BaseModel):
    """The contents of encoder.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

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
    """sha256 over model, tokenizer and the settings that change an embedding."""


def encoder_digest(folder: Path, *, dim: int, max_tokens: int, pooling: str) -> str:
    """sha256, as hex, of the parts of an encoder folder that determine embeddings."""
    settings = {"format": 1, "dim": dim, "max_tokens": max_tokens, "pooling": pooling}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in (MODEL_FILE, TOKENIZER_FILE):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


class Encoder:
    """An exported encoder, ready to embed. All methods may be called from several threads at once."""

    def __init__(self, session: Any, tokenizer: Any, settings: EncoderSettings) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._settings = settings
        self.specials: int = tokenizer.num_special_tokens_to_add(is_pair=False)
        """Special tokens the tokenizer adds to each text."""

    @classmethod
    def open(cls, path: str | Path, threads: int = 1) -> Self:
        """Open an exported encoder folder; `threads` is how many cores one `embed` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than the exported model.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        folder = Path(path)
        settings = read_settings(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # keeps the largest batch ever seen allocated, and is no faster
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # vLLM needs the cores
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            session = onnxruntime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise bare Exceptions of their own
            raise EncoderError(f"{folder}: cannot be loaded ({_first_line(error)})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoder = cls(session, tokenizer, settings)
        encoder._probe(folder)
        normalise("é")  # builds its tables now, 0.4 s, and not within somebody's request
        return encoder

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that determines an embedding: caches and heads are bound to it."""
        return self._settings.digest

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._settings.dim

    @property
    def max_tokens(self) -> int:
        """Longest text `embed` accepts, in tokens with special tokens."""
        return self._settings.max_tokens

    def token_count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as `embed` would see it, special tokens included."""
        return [len(self._encode(_prepare(text)).ids) for text in texts]

    def vocabulary_ranks(self) -> dict[str, int]:
        """Whole words of the tokenizer's vocabulary -> place in it, from 0: vocabularies are ordered by frequency."""
        ids = self._tokenizer.get_vocab()
        words = sorted((i, token.lstrip("Ġ▁").casefold()) for token, i in ids.items() if not token.startswith("##"))
        ranks: dict[str, int] = {}
        for rank, (_, word) in enumerate((i, word) for i, word in words if word.isalpha()):
            ranks.setdefault(word, rank)
        return ranks

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (N, dim) float32, rows of norm 1; texts are normalised here.

        Nothing is truncated, for a truncated prompt hides a question: `split_windows` makes texts that fit.

        Raises:
            EncoderError: a text has more than `max_tokens` tokens, or ONNX Runtime fails.
        """
        ids = [self._encode(_prepare(text)).ids for text in texts]
        longest = max(map(len, ids), default=0)
        if longest > self.max_tokens:
            raise EncoderError(
                f"a text has {longest} tokens and the encoder takes {self.max_tokens}; "
                "split it with split_windows, which drops nothing"
            )
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        for batch in _equal_length_batches(ids):
            stacked = np.array([ids[index] for index in batch], dtype=np.int64)  # (B, S)
            try:
                embeddings[batch] = self._session.run(None, {"input_ids": stacked})[0]
            except Exception as error:  # onnxruntime has no error class of its own to catch
                raise EncoderError(f"the encoder failed on {stacked.shape} tokens: {_first_line(error)}") from error
        return embeddings

    def split_windows(self, text: str, window_tokens: int = 64, overlap_tokens: int = 32) -> list[str]:
        """The text as overlapping windows that together hold every word; one window if it is short enough.

        Windows are short by choice: one forbidden sentence fills a good part of a window of 64 tokens and is
        lost among 256. Any run of words of up to `overlap_tokens` tokens lies whole within some window.
        Windows are normalised text, cut between words; only a word longer than a window is cut inside.
        Tokens are counted with special tokens. The defaults cost twice the tokens of the text.

        Raises:
            ValueError: an overlap not below the window's tokens without special ones, or a window above max_tokens.
        """
        budget = window_tokens - self.specials
        if not 0 <= overlap_tokens < budget or window_tokens > self.max_tokens:
            raise ValueError(f"no windows of {window_tokens} tokens with an overlap of {overlap_tokens}")
        text = _prepare(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words, offsets = encoding.word_ids, encoding.offsets
        if len(words) <= budget:
            return [text]
        spans = _window_spans(words, budget, overlap_tokens)
        return [
            text[offsets[start][0] if start else 0 : offsets[end][0] if end < len(words) else len(text)]
            for start, end in spans
        ]

    def _encode(self, text: str) -> Any:
        return self._tokenizer.encode(text)

    def _probe(self, folder: Path) -> None:
        expected = np.array(self._settings.probe_embedding, dtype=np.float32)
        found = self.embed([self._settings.probe_text])[0]
        if expected.shape != found.shape or not float(expected @ found) >= _PROBE_COSINE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")


def read_settings(folder: Path) -> EncoderSettings:
    """Read and verify encoder.json and the digest it records.

    Raises:
        EncoderError: a file is missing or malformed, or model or tokenizer are not the recorded ones.
    """
    try:
        settings = EncoderSettings.model_validate_json((folder / SETTINGS_FILE).read_bytes())
        digest = encoder_digest(folder, dim=settings.dim, max_tokens=settings.max_tokens, pooling=settings.pooling)
    except OSError as error:
        raise EncoderError(f"{folder}: not an exported encoder ({error.filename}: {error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise EncoderError(f"{folder / SETTINGS_FILE}: {where}: {first['msg']}") from error
    if digest != settings.digest:
        raise EncoderError(f"{folder}: digest is {digest[:12]}…, recorded {settings.digest[:12]}…; files were changed")
    return settings


def _prepare(text: str) -> str:
    return _LONG_WORD.sub(r"\g<0> ", normalise(text))


def _equal_length_batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts of the same token count, at most `_RUN_TOKENS` tokens together: nothing needs padding.

    On one core batching gains little (a tenth at 32 tokens), so many batches of one cost next to nothing.
    """
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for length, group in itertools.groupby(order, key=lambda index: len(ids[index])):
        indices = list(group)
        size = max(1, _RUN_TOKENS // length)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _window_spans(words: Sequence[int | None], budget: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Half-open token ranges of at most `budget` tokens cut at word boundaries where possible."""
    start = covered = 0
    while covered < len(words):
        end = min(start + budget, len(words))
        cut = _word_start(words, end)
        end = cut if cut > covered else end  # else: one word fills the window, cut inside it
        yield start, end
        covered = end
        start = _next_start(words, start, end, budget, overlap)


def _next_start(words: Sequence[int | None], start: int, end: int, budget: int, overlap: int) -> int:
    following = _word_start(words, max(end - overlap, 0)) if overlap else end
    if end - following > (budget + overlap) // 2:  # a very long word: cut inside it, or barely advance
        following = end - overlap
    return max(following, start + 1)


def _word_start(words: Sequence[int | None], index: int) -> int:
    """The first token of the word that token `index` belongs to; `index` itself past the end."""
    if index >= len(words) or words[index] is None:
        return index
    while index > 0 and words[index - 1] == words[index]:
        index -= 1
    return index


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]

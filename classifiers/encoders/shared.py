"""Texts to embeddings at request time: a tokenizer and an ONNX Runtime session, no torch, no transformers.

An encoder is a folder of three files, made by `classifiers.export.shared.export_encoder`: model.onnx, tokenizer.json
and encoder.json. The embedding of a text does not depend on the texts embedded with it (to 1e-6).

A head sees that embedding of a text, and a sparse block of hashed words and n-grams. Dense sentence embeddings blur
invented or rare names, and forget sets are mostly about names; the lexical block keeps them apart. Nothing in a
feature depends on a policy, so all policies share one computation.
"""

import functools
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import Session, open_tokenizer, prepare, split_text
from classifiers.encoders.settings import (
    MODEL_FILE,
    OVERLAP_TOKENS,
    TOKENIZER_FILE,
    WINDOW_TOKENS,
    EncoderSettings,
    read_settings,
)
from classifiers.errors import EncoderError
from text.names import words_of
from text.normalise import normalise

_PROBE_COSINE = 0.97


class Encoder:
    """An exported encoder, ready to embed. All methods may be called from several threads at once."""

    def __init__(self, session: Session, tokenizer: Any, settings: EncoderSettings) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.digest = settings.digest
        """sha256 (hex) of everything that determines an embedding: caches and heads are bound to it."""
        self.dim = settings.dim
        """Length of an embedding."""
        self.max_tokens = settings.max_tokens
        """Longest text `embed` accepts, in tokens with special tokens."""
        self.specials: int = tokenizer.num_special_tokens_to_add(is_pair=False)
        """Special tokens the tokenizer adds to each text."""

    @classmethod
    def open(cls, path: str | Path, threads: int = 1) -> Self:
        """Open an exported encoder folder; `threads` is how many cores one `embed` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than the exported model.
        """
        folder = Path(path)
        settings = read_settings(folder, EncoderSettings)
        tokenizer = open_tokenizer(folder / TOKENIZER_FILE)
        encoder = cls(Session(folder / MODEL_FILE, "encoder", threads), tokenizer, settings)
        expected = np.array(settings.probe_embedding, dtype=np.float32)
        answer = encoder.embed([settings.probe_text])[0]
        if expected.shape != answer.shape or not float(expected @ answer) >= _PROBE_COSINE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")
        normalise("é")  # builds its tables now, 0.4 s, and not within somebody's request
        return encoder

    def token_count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as `embed` would see it, special tokens included."""
        return [len(self._tokenizer.encode(prepare(text)).ids) for text in texts]

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
        ids = [self._tokenizer.encode(prepare(text)).ids for text in texts]
        longest = max(map(len, ids), default=0)
        if longest > self.max_tokens:
            raise EncoderError(
                f"a text has {longest} tokens and the encoder takes {self.max_tokens}; "
                "split it with split_windows, which drops nothing"
            )
        rows = self._session.run(ids)
        if any(row.shape != (self.dim,) for row in rows):
            raise EncoderError(f"the encoder gave something that is no embedding of {self.dim} numbers")
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)

    def split_windows(
        self, text: str, window_tokens: int = WINDOW_TOKENS, overlap_tokens: int = OVERLAP_TOKENS
    ) -> list[str]:
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
        return split_text(self._tokenizer, prepare(text), budget, overlap_tokens)


FEATURE_VERSION = 3
"""Stored with every head; raise it whenever the same text would give other features."""

LEXICAL_BUCKETS = 1 << 16
"""Power of two. In 2**13, 4000 examples fill every bucket and unseen names collide with forgotten ones."""

_NGRAM_SIZES = (3, 4)
_NGRAM_CHARS = 32  # of a longer word only the head is cut into n-grams
_WORD_SCALE, _BIGRAM_SCALE, _NGRAM_SCALE = 1.0, 1.0, 0.5


@dataclass(frozen=True)
class PromptFeatures:
    """One text. `embedding` (dim,) float32 of norm 1; `indices` (K,) int64, ascending and unique, below
    `LEXICAL_BUCKETS`; `values` (K,) float32. `text` is what an entity memory looks at."""

    embedding: NDArray[np.float32]
    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    text: str = ""


def extract_features(encoder: Encoder, texts: Sequence[str]) -> list[PromptFeatures]:
    """Features of texts (or windows) that fit the encoder.

    Raises:
        EncoderError: a text is longer than the encoder takes.
    """
    embeddings = encoder.embed(texts)
    return [PromptFeatures(row, *lexical_features(text), text) for row, text in zip(embeddings, texts, strict=True)]


def lexical_features(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(indices, values) of the text's words, pairs of neighbouring words, and character n-grams within words.

    Feature hashing with signs (Weinberger et al. 2009) by CRC-32, the same on every machine. Counts are
    damped as sign * log(1 + count). The block is not normalised by length: a name is the same evidence in a
    long text. (On TOFU, normalising missed 13 to 22 more
    of 100 questions hidden in 150 words of other text, at 0.25 % of unseen authors' questions flagged.)
    """
    counts: dict[int, float] = {}
    words = words_of(text)
    for word in words:
        for bucket, value in _word_buckets(word):
            counts[bucket] = counts.get(bucket, 0.0) + value
    for left, right in itertools.pairwise(words):
        bucket, sign = _bucket(f"b\0{left}\0{right}")
        counts[bucket] = counts.get(bucket, 0.0) + sign * _BIGRAM_SCALE
    indices = np.array(sorted(counts), dtype=np.int64)
    values = np.array([counts[index] for index in indices.tolist()], dtype=np.float32)
    return indices, np.sign(values) * np.log1p(np.abs(values))


@functools.lru_cache(maxsize=16384)
def _word_buckets(word: str) -> tuple[tuple[int, float], ...]:
    bucket, sign = _bucket(f"w\0{word}")
    buckets = [(bucket, sign * _WORD_SCALE)]
    marked = f"<{word[:_NGRAM_CHARS]}>"
    for size in _NGRAM_SIZES:
        grams = [_bucket(f"c\0{marked[i : i + size]}") for i in range(len(marked) - size + 1)]
        buckets += [(bucket, sign * _NGRAM_SCALE) for bucket, sign in grams]
    return tuple(buckets)


def _bucket(feature: str) -> tuple[int, float]:
    code = zlib.crc32(feature.encode())
    return code & (LEXICAL_BUCKETS - 1), 1.0 if code >> 31 else -1.0

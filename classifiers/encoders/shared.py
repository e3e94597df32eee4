"""Texts to embeddings at request time: a tokenizer and an ONNX Runtime session, no torch, no transformers.

An encoder is a folder of three files, made by `classifiers.export.shared.export_encoder`: model.onnx, tokenizer.json
and encoder.json. The embedding of a text does not depend on the texts embedded with it (to 1e-6).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import Device, Session, open_tokenizer, prepare, split_text
from classifiers.encoders.settings import (
    MODEL_FILE,
    TOKENIZER_FILE,
    EncoderSettings,
    read_settings,
)
from classifiers.errors import EncoderError
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
        """Longest text that `embed` reads at once, in tokens with special tokens."""
        self.specials: int = tokenizer.num_special_tokens_to_add(is_pair=False)
        """Special tokens the tokenizer adds to each text."""

    @classmethod
    def open(cls, path: str | Path, threads: int = 1, device: Device = "cpu") -> Self:
        """Open an exported encoder folder; `threads` is how many cores one `embed` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than the exported model.
        """
        folder = Path(path)
        settings = read_settings(folder, EncoderSettings)
        tokenizer = open_tokenizer(folder / TOKENIZER_FILE)
        encoder = cls(Session(folder / MODEL_FILE, "encoder", threads, device), tokenizer, settings)
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

        Nothing is truncated, for a truncated prompt hides a question: of a text of more than `max_tokens` tokens, the
        mean direction of its parts is taken. `text.reading.windows_of` makes texts short enough to say something.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        parts = [self._parts(prepare(text)) for text in texts]
        rows = self._session.run([ids for own in parts for ids in own])
        if any(row.shape != (self.dim,) for row in rows):
            raise EncoderError(f"the encoder gave something that is no embedding of {self.dim} numbers")
        answers, following = np.empty((len(texts), self.dim), dtype=np.float32), iter(rows)
        for row, own in enumerate(parts):
            answers[row] = next(following)
            if len(own) > 1:
                total = answers[row] + sum(next(following) for _ in own[1:])
                answers[row] = total / max(float(np.linalg.norm(total)), 1e-12)
        return answers

    def _parts(self, text: str) -> list[list[int]]:
        """Token ids of a prepared text, in as many parts as it takes."""
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) <= self.max_tokens:
            return [ids]
        parts = split_text(self._tokenizer, text, self.max_tokens - self.specials, 0)
        return [self._tokenizer.encode(part).ids for part in parts]

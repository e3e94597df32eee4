"""The text to forget, read and cut into passages."""

import itertools
import re
from collections.abc import Iterator, Sequence

from offline_training.data.columns import load_examples

__all__ = ["passages", "read_texts", "words_of"]

_PARAGRAPHS = re.compile(r"\n\s*\n")
_BLANKS = re.compile(r"\s+")
_SENTENCES = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")


def read_texts(source: str) -> list[str]:
    """The texts of a source as `--text` takes it, in order. Of questions with answers, both together are a text.

    Raises:
        DataError: it cannot be read, or a row has no text.
    """
    return [
        f"{example.prompt}\n{example.answer or ''}".strip() for example in load_examples(source, name="text").examples
    ]


def passages(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of at most `limit` characters: whole paragraphs where they fit, else sentences, else words."""
    piece = ""
    for part in _parts(text, limit):
        if len(piece) + len(part) > limit:
            if piece.strip():
                yield piece.strip()
            piece = ""
        piece += part
    if piece.strip():
        yield piece.strip()


def _parts(text: str, limit: int) -> Iterator[str]:
    """Pieces that put together are the text, each of at most `limit` characters."""
    for pattern in (_PARAGRAPHS, _SENTENCES, _BLANKS):
        borders = [found.end() for found in pattern.finditer(text) if found.end() < len(text)]
        if borders and len(text) > limit:
            for start, end in itertools.pairwise([0, *borders, len(text)]):
                yield from _parts(text[start:end], limit)
            return
    yield from (text[start : start + limit] for start in range(0, len(text), limit))


def words_of(texts: Sequence[str]) -> set[str]:
    """All words, casefolded."""
    return {word.casefold() for text in texts for word in re.findall(r"\w+", text)}

"""What a head sees of a text: its embedding, and a sparse block of hashed words and n-grams.

Dense sentence embeddings blur invented or rare names, and forget sets are mostly about names; the lexical block keeps
them apart. Nothing in a feature depends on a policy, so all policies share one computation.

The block is a sum over the distinct words of a text and the distinct pairs of neighbours. So a text's lexical score is
the sum of its words' scores, and those of all windows of a prompt come from one look at each word.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.shared import Encoder
from text.reading import read_all
from text.recent import Recent

FEATURE_VERSION = 5
"""Stored with every head; raise it whenever the same text would give other features."""

LEXICAL_BUCKETS = 1 << 16
"""Power of two. In 2**13, 4000 examples fill every bucket and unseen names collide with forgotten ones."""

_NGRAM_SIZES = (3, 4)
_NGRAM_CHARS = 32  # of a longer word only the head is cut into n-grams
_NGRAM_SCALE = 0.5
_MIX = tuple(np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_WORD_SALT, _PAIR_SALT = np.uint64(0x57), np.uint64(0x42)
_CACHED_WORDS = 1 << 16

_Int = NDArray[np.int64]
_Float = NDArray[np.float32]


@dataclass(frozen=True)
class PromptFeatures:
    """One text. `embedding` (dim,) float32 of norm 1; `indices` (K,) int64, ascending and unique, below
    `LEXICAL_BUCKETS`; `values` (K,) float32. `text` is what an entity memory looks at."""

    embedding: _Float
    indices: _Int
    values: _Float
    text: str = ""


def extract_features(encoder: Encoder, texts: Sequence[str]) -> list[PromptFeatures]:
    """Features of texts (or windows) that fit the encoder.

    Raises:
        EncoderError: a text is longer than the encoder takes.
    """
    embeddings = encoder.embed(texts)
    return [PromptFeatures(row, *lexical_features(text), text) for row, text in zip(embeddings, texts, strict=True)]


def lexical_features(text: str) -> tuple[_Int, _Float]:
    """(indices, values) of the text's distinct words, of the character n-grams within them, and of its distinct pairs
    of neighbouring words.

    Feature hashing with signs (Weinberger et al. 2009), the same on every machine. The block is not normalised by
    length: a name is the same evidence in a long text. (On TOFU, normalising missed 13 to 22 more of 100 questions
    hidden in 150 words of other text, at 0.25 % of unseen authors' questions flagged.)
    """
    reading = read_all([text])
    words = LexicalWords(reading.word_kinds, reading.word_at)
    indices = np.concatenate([words.indices, words.pair_indices])
    values = np.concatenate([words.values, words.pair_signs])
    found, place = np.unique(indices, return_inverse=True)
    return found, np.bincount(place, values, len(found)).astype(np.float32)


class LexicalWords:
    """The lexical features of N words, word by word.

    Args:
        kinds: the D different words.
        at: (N,) which of them each word is.

    Attributes:
        indices, values: (F,) buckets and values of all different words, one after the other.
        starts: (D,) where each one's begin.
        pair_at: (N - 1,) which of E different pairs each two neighbours are; empty where there are none.
        pair_indices, pair_signs: (E,) one bucket and its sign for each different pair.
    """

    def __init__(self, kinds: Sequence[str], at: _Int) -> None:
        hashed = _hashed(kinds)
        lengths = np.array([len(buckets) for _, buckets, _ in hashed], dtype=np.int64)
        self.starts: _Int = np.cumsum(lengths) - lengths
        self.indices: _Int = np.concatenate([b for _, b, _ in hashed] or [np.empty(0, dtype=np.int64)])
        self.values: _Float = np.concatenate([v for _, _, v in hashed] or [np.empty(0, dtype=np.float32)])
        codes = np.array([code for code, _, _ in hashed], dtype=np.uint64)[at]
        pairs = _mixed(codes[:-1] * _MIX[0] + codes[1:] + _PAIR_SALT)
        distinct, self.pair_at = np.unique(pairs, return_inverse=True)
        self.pair_indices, self.pair_signs = _bucket(distinct)


_known: Recent[str, tuple[int, _Int, _Float]] = Recent(_CACHED_WORDS)


def _hashed(words: Sequence[str]) -> list[tuple[int, _Int, _Float]]:
    """For each word a code, its buckets and their values."""
    found = _known.get_all(words)
    if new := [word for word, known in zip(words, found, strict=True) if known is None]:
        hashed = dict(zip(new, _hash(new), strict=True))
        for word, known in hashed.items():
            _known.put(word, known)
        return [hashed[word] if known is None else known for word, known in zip(words, found, strict=True)]
    return [known for known in found if known is not None]


def _hash(words: Sequence[str]) -> Iterable[tuple[int, _Int, _Float]]:
    marked = [f"<{word[:_NGRAM_CHARS]}>" for word in words]
    letters = np.frombuffer("".join(marked).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(words)), [len(word) for word in marked])  # (L,) the word of each letter
    codes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
    owners, buckets, values = [np.arange(len(words))], [], []
    for hashes, scale in ((_mixed(codes * _MIX[0] + _WORD_SALT), 1.0), *_ngrams(letters, owner, owners)):
        indices, signs = _bucket(hashes)
        buckets.append(indices)
        values.append(signs * np.float32(scale))
    order = np.argsort(np.concatenate(owners), kind="stable")
    cuts = np.cumsum(np.bincount(np.concatenate(owners), minlength=len(words)))[:-1]
    split = (np.split(np.concatenate(parts)[order], cuts) for parts in (buckets, values))
    return zip(codes.tolist(), *split, strict=True)


def _ngrams(letters: NDArray[np.uint64], owner: _Int, owners: list[_Int]) -> Iterable[tuple[NDArray[np.uint64], float]]:
    """Hashes of all n-grams of each size, none over the end of a word; whose they are goes to `owners`."""
    for size in _NGRAM_SIZES:
        count = max(len(letters) - size + 1, 0)
        within = owner[:count] == owner[size - 1 : size - 1 + count]
        code = np.full(count, size, dtype=np.uint64)
        for offset in range(size):
            code = code * _MIX[0] + letters[offset : offset + count]
        owners.append(owner[:count][within])
        yield _mixed(code[within]), _NGRAM_SCALE


def _mixed(code: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the input in every bit of the output (the finaliser of SplitMix64)."""
    code = (code ^ (code >> np.uint64(30))) * _MIX[1]
    code = (code ^ (code >> np.uint64(27))) * _MIX[2]
    return code ^ (code >> np.uint64(31))


def _bucket(hashes: NDArray[np.uint64]) -> tuple[_Int, _Float]:
    signs = np.where(hashes >> np.uint64(63), np.float32(1), np.float32(-1)).astype(np.float32)
    return (hashes & np.uint64(LEXICAL_BUCKETS - 1)).astype(np.int64), signs

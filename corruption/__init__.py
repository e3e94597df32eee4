"""Corrupting prompt embeddings: what to do, doing it, and the rows of a checkpoint to do it to.

Pure: no server, no tokenizer, no policy. Importing it does not import transformers.
"""

from corruption.methods import RANDOM_METHODS, corrupt
from corruption.rows import CheckpointError, CorruptionError, EmbeddingRows
from corruption.spec import METHODS, PERMUTING_METHODS, STRENGTHLESS_METHODS, ZEROING_METHODS, CorruptionSpec, Method

__all__ = [
    "METHODS",
    "PERMUTING_METHODS",
    "RANDOM_METHODS",
    "STRENGTHLESS_METHODS",
    "ZEROING_METHODS",
    "CheckpointError",
    "CorruptionError",
    "CorruptionSpec",
    "EmbeddingRows",
    "Method",
    "corrupt",
]

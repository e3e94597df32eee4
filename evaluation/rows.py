"""The rows of a suite's data: which of them are measured, what identifies them, and the samples that come with us."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from evaluation.errors import DataError
from storage.digests import sha256_of_json

__all__ = ["check_limit", "digest_of_rows", "drawn", "sample_file"]

_T = TypeVar("_T")


def check_limit(limit: int | None) -> None:
    """Raise `DataError` where a limit lets nothing through."""
    if limit is not None and limit < 1:
        raise DataError(f"--limit: {limit} is not possible; give 1 or more, or leave it out for all")


def drawn(rows: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """At most `limit` of the rows, in their order: the same for the same seed, and more for a higher limit.

    Args:
        limit: None: all.

    Raises:
        DataError: the limit is below 1.
    """
    check_limit(limit)
    picked = np.random.default_rng(seed).permutation(len(rows))[:limit].tolist()
    return [rows[number] for number in sorted(picked)]


def digest_of_rows(rows: object) -> str:
    """sha256 in hex of JSON values."""
    return sha256_of_json(rows, sort_keys=True)


def sample_file(suite: str, name: str) -> str:
    """The path of one of the small samples that come with the project: to try a suite with, and for its tests.

    Args:
        suite: the folder of the suite within the package.
    """
    return str(Path(__file__).parent / suite / "samples" / name)

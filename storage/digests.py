"""sha256, as hex, of files, folders and JSON values: how artifacts name what they were made from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sha256_of_file(path: Path) -> str:
    """Raises OSError where the file cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(value: Any, *, sort_keys: bool = False) -> str:
    """Of the value as `json.dumps` writes it."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()


def folder_digest(folder: Path, patterns: Sequence[str]) -> str:
    """Over the names and contents of a folder's files that match one of the patterns."""
    total = hashlib.sha256()
    for path in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        total.update(f"{path.name}\0{sha256_of_file(path)}\0".encode())
    return total.hexdigest()

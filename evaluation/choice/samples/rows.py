"""Documents of a task from a JSON file beside its YAML: `{"split": [{column: value}]}`. lm-eval calls it.

lm-eval's own `dataset_path: json` reads a relative path from the working directory, and copies what it read into the
user's cache; this does neither.
"""

import json
from pathlib import Path

from datasets import Dataset  # type: ignore[import-untyped]


def local_splits(*, file: str, **_: object) -> dict[str, Dataset]:
    """The splits of a file in this folder. lm-eval passes the task's metadata too."""
    splits = json.loads((Path(__file__).parent / file).read_text(encoding="utf-8"))
    return {name: Dataset.from_list(rows) for name, rows in splits.items()}

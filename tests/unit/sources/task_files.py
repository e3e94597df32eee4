"""Small files of the columns and names the published data sets have."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]

ECONOMICS = ("high_school_macroeconomics", "high_school_microeconomics")
LAW = ("international_law", "professional_law")
PHYSICS = ("college_physics", "conceptual_physics", "high_school_physics")
NEAR = ("econometrics", "jurisprudence", "college_mathematics", "high_school_mathematics")
HAZARD_NEAR = (
    *("college_biology", "virology", "college_chemistry", "high_school_chemistry"),
    *("college_computer_science", "computer_security"),
)
SUBJECTS = (*ECONOMICS, *LAW, *PHYSICS, *NEAR, *HAZARD_NEAR, "anatomy", "marketing")


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def choice(question: str, answer: int = 1) -> dict[str, Any]:
    return {"question": question, "choices": ["one", "two", "three", "four"], "answer": answer}


def write_mmlu(folder: Path, extra: Mapping[str, Rows] | None = None) -> None:
    """config `all` of cais/mmlu: 2, 2 and 3 questions of each subject in dev, validation and test; 400 auxiliary."""
    sizes = {"dev": 2, "validation": 2, "test": 3}
    for split, size in sizes.items():
        rows = [
            {"subject": subject, **choice(f"{split} question {number} on {subject}?")}
            for subject in SUBJECTS
            for number in range(size)
        ]
        write_parquet(folder / f"all/{split}-00000-of-00001.parquet", [*rows, *(extra or {}).get(split, ())])
    rows = [{"subject": "", **choice(f"Auxiliary question {number}?")} for number in range(400)]
    auxiliary = [*rows, *(extra or {}).get("auxiliary_train", ())]
    write_parquet(folder / "all/auxiliary_train-00000-of-00001.parquet", auxiliary)


def write_wmdp(folder: Path) -> None:
    for subject in ("bio", "chem", "cyber"):
        rows = [choice(f"WMDP {subject} {number}?") for number in range(5)]
        write_parquet(folder / f"wmdp-{subject}/test-00000-of-00001.parquet", rows)

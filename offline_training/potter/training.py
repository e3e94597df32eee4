"""Last step of Who's Harry Potter: a plain fine-tuning of the baseline on the generic labels.

Section 2.4 of Eldan and Russinovich 2023 (arXiv 2310.02238).
"""

import json
from pathlib import Path

from pydantic import Field
from rich.console import Console

from offline_training.checkpoint import open_checkpoint
from offline_training.data.encoding import EncodedSet, digest_of
from offline_training.errors import DataError
from offline_training.job import run_prepared
from offline_training.potter.labels import META_FILE, load_labels
from offline_training.preparation import prepare_examples
from offline_training.settings import Job


class LabelJob(Job):
    """Fine-tuning on labels."""

    labels: Path = Field(description="Folder that eco potter labels wrote.")


def train_on_labels(job: LabelJob, console: Console) -> None:
    """Train the baseline on labels and write the checkpoint to `job.out`.

    Raises:
        JobError: there are no finished labels, or they were made for another model; else as `run_finetuning`.
    """
    # A block whose anchors are all repetitions has no label at all.
    examples = tuple(example for example in load_labels(job.labels) if example.target_count)
    base = open_checkpoint(job.model)
    meta = json.loads((job.labels / META_FILE).read_text(encoding="utf-8"))
    if meta.get("key", {}).get("model") != base.digest:
        raise DataError(
            f"--labels: {job.labels}: made for another model than {job.model}; give the baseline as --model"
        )
    labels = EncodedSet("labels", str(job.labels), digest_of(examples), examples, texts=(), cut=0)
    run_prepared(prepare_examples(job, labels, base), console)

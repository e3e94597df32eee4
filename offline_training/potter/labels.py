"""Third step of Who's Harry Potter: the text with generic labels, as a folder of examples for the final fine-tuning.

Algorithm 1 of Eldan and Russinovich 2023 (arXiv 2310.02238). The folder appears bit by bit, and ends in the same bytes
however often the job was killed. Finished it holds labels.jsonl, a line {"ids": [...], "targets": [...]} for each
block, and meta.json: how it was made and its sha256. Until then there are key.json, how it is being made, and parts/,
files of some blocks each.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console

from console.progress import shown_progress
from offline_training.checkpoint import DTYPES, BaseCheckpoint, open_checkpoint, precision_of
from offline_training.data.tokens import TokenizedExample
from offline_training.errors import DataError, JobError, SettingsError
from offline_training.potter.anchors import load_anchors
from offline_training.potter.blocks import Block, BlockCutter
from offline_training.potter.labelling import Labeller
from offline_training.potter.texts import TEXT_DESCRIPTION, read_texts
from offline_training.settings import Schema, check_least
from storage.digests import sha256_of_file, sha256_of_json
from storage.whole import whole_file

META_FILE = "meta.json"
_LABELS_FILE, _KEY_FILE, _PARTS = "labels.jsonl", "key.json", "parts"
_FORMAT = 1


class LabelOptions(Schema):
    """How labels are made."""

    model: str = Field(description="The baseline, which is to forget: a folder or a hub id.")
    reinforced: str = Field(description="What eco potter reinforce made of it.")
    anchors: Path = Field(description="What eco potter anchors wrote, or a dictionary of one's own.")
    text: str = Field(description=TEXT_DESCRIPTION)
    out: Path = Field(description="Folder for the labels.")
    alpha: float = Field(5.0, description="Weight of what the reinforced model adds; 5 as published.")
    context_tokens: int = Field(512, description="Longest block of text; 512 as published.")
    max_tokens: int | None = Field(
        None, description="Labels for about so many tokens from the text's start; None: for all of it."
    )
    given_penalty: float = Field(
        5.0, description="Nats that the start of a translation loses once its anchor has been read."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp32 elsewhere."
    )
    batch_tokens: int = Field(4096, description="Tokens in one forward.")
    part_blocks: int = Field(64, description="Blocks that an interrupted job may have to compute again.")
    resume: bool = Field(False, description="Go on where an interrupted run of the same job stopped.")
    force: bool = Field(False, description="Replace what --out holds.")


def make_labels(
    options: LabelOptions, console: Console, on_progress: Callable[[int, int], None] | None = None
) -> list[TokenizedExample]:
    """Labels the text; `on_progress` hears how many blocks of how many are done, instead of a bar on the console.

    Raises:
        JobError: an option, a file or a model cannot be used, `out` holds another job's labels, or the disk refuses.
            All that can be known without the weights is checked before they are loaded.
    """
    check_least(
        options,
        {"context_tokens": 8, "batch_tokens": 1, "part_blocks": 1, "max_tokens": 1, "alpha": 0, "given_penalty": 0},
    )
    if options.resume and options.force:
        raise SettingsError("--resume, --force: give one of them")
    anchors = load_anchors(options.anchors)
    texts = read_texts(options.text)
    baseline, reinforced = _open_models(options)
    context = baseline.context_tokens(options.context_tokens)
    cutter = BlockCutter(baseline.tokenizer, anchors, context)
    blocks: list[Block] = []
    tokens = 0
    for block in itertools.chain.from_iterable(map(cutter.blocks, texts)):
        if options.max_tokens is not None and tokens >= options.max_tokens:
            break
        blocks.append(block)
        tokens += len(block.ids)
    if not any(block.positions for block in blocks):
        raise DataError(f"--text: {options.text}: too short to label; a text of some sentences is needed")
    if options.precision == "fp16" and not torch.cuda.is_available():
        console.print("--precision: fp16 needs a GPU; computing in fp32")
        precision = "fp32"
    else:
        precision = precision_of(options.precision)
    if reinforced.digest == baseline.digest:
        raise JobError(f"--reinforced: {reinforced.name} is --model itself; train it on the text first")
    key = {
        "format": _FORMAT,
        "model": baseline.digest,
        "reinforced": reinforced.digest,
        "anchors": sha256_of_json(anchors),
        "text": sha256_of_json(texts),
        "alpha": options.alpha,
        "given_penalty": options.given_penalty,
        "context_tokens": context,
        "max_tokens": options.max_tokens,
        "precision": precision,
        "batch_tokens": options.batch_tokens,
        "part_blocks": options.part_blocks,
    }
    folder = LabelFolder(options.out, key)
    if not folder.prepare(resume=options.resume, force=options.force):
        console.print(f"{options.out}: these labels are already made")
        return load_labels(options.out)
    parts = [blocks[start : start + options.part_blocks] for start in range(0, len(blocks), options.part_blocks)]
    missing = [number for number in range(len(parts)) if not folder.part(number).exists()]
    if missing:
        labeller = _labeller(options, baseline, reinforced, precision)
        with shown_progress(console) as show:
            report = on_progress or (lambda done, total: show("labelling", done, total))
            for number in missing:
                report(number * options.part_blocks, len(blocks))
                folder.add(number, labeller.label(parts[number]))
            report(len(blocks), len(blocks))
    summary = {
        "blocks": len(blocks),
        "tokens": tokens,
        "labels": sum(len(block.positions) for block in blocks),
        "repeated_anchor_tokens": sum(block.repeated for block in blocks),
    }
    folder.finish(len(parts), summary)
    examples = load_labels(options.out)
    labels = sum(example.target_count for example in examples)
    console.print(f"{labels:,} labels in {len(examples):,} blocks in {options.out}")
    return examples


def _open_models(options: LabelOptions) -> tuple[BaseCheckpoint, BaseCheckpoint]:
    """The baseline and the reinforced model, which have one tokenizer."""
    baseline = open_checkpoint(options.model)
    try:
        reinforced = open_checkpoint(options.reinforced)
    except JobError as error:
        raise JobError(str(error).replace("--model", "--reinforced", 1)) from error
    if baseline.tokenizer.get_vocab() != reinforced.tokenizer.get_vocab():
        raise JobError(
            f"--reinforced: {reinforced.name} has another tokenizer than {baseline.name}; train it from --model"
        )
    return baseline, reinforced


def _labeller(options: LabelOptions, baseline: BaseCheckpoint, reinforced: BaseCheckpoint, precision: str) -> Labeller:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models: list[Any] = []
    for flag, checkpoint in (("model", baseline), ("reinforced", reinforced)):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=DTYPES[precision])
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise JobError(f"--{flag}: {checkpoint.name} cannot be loaded ({reason})") from error
        models.append(model.to(device))
    alpha, penalty, batch_tokens = options.alpha, options.given_penalty, options.batch_tokens
    return Labeller(models[0], models[1], baseline.tokenizer, alpha=alpha, penalty=penalty, batch_tokens=batch_tokens)


class LabelFolder:
    """One job's folder. `key` is everything that decides the labels."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path = path
        self._key = dict(key)

    def prepare(self, *, resume: bool, force: bool) -> bool:
        """Makes the folder ready; returns whether there is something to do, which with finished labels there is not.

        Raises:
            JobError: it holds something that must not be replaced or gone on with, or the disk refuses.
        """
        finished, begun = _read(self.path / META_FILE), _read(self.path / _KEY_FILE)
        if finished is not None and not {"key", "sha256"} <= finished.keys():
            finished = None  # none of ours
        if force and (finished is not None or begun is not None):
            self._clear(META_FILE, _LABELS_FILE)
            finished = begun = None
        if finished is not None and finished.get("key") == self._key:
            self._clear()
            return False
        if finished is not None or (begun is not None and begun != self._key):
            raise JobError(
                f"--out: {self.path} holds labels made otherwise; choose another folder, or replace them with --force"
            )
        if begun is not None and not resume:
            raise JobError(
                f"--out: {self.path} holds an unfinished job; go on with --resume, or replace it with --force"
            )
        if begun is None:
            if self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - self._torn()):
                raise JobError(f"--out: {self.path} exists and holds no labels; choose another folder")
            _write([json.dumps(self._key, indent=1)], self.path / _KEY_FILE)
        return True

    def part(self, number: int) -> Path:
        """The file of a part, which is there when the part is done."""
        return self.path / _PARTS / f"{number:06}.jsonl"

    def add(self, number: int, examples: Iterable[TokenizedExample]) -> None:
        """Keeps a part; it is on the disk when this returns."""
        rows = ({"ids": example.ids, "targets": example.targets} for example in examples)
        _write((json.dumps(row, separators=(",", ":")) for row in rows), self.part(number))

    def finish(self, parts: int, summary: Mapping[str, int]) -> None:
        """All parts as one file, then meta.json, whose presence says that the folder is whole; then the parts go."""
        labels = self.path / _LABELS_FILE
        texts = (self.part(number).read_text(encoding="utf-8") for number in range(parts))
        _write((line for text in texts for line in text.splitlines()), labels)
        meta = {"key": self._key, "sha256": sha256_of_file(labels), **summary}
        _write([json.dumps(meta, indent=1)], self.path / META_FILE)
        self._clear()

    def _clear(self, *more: str) -> None:
        """Removes what only an unfinished job needs, and `more`."""
        try:
            for path in (*(self.path / name for name in (*more, _KEY_FILE)), *self._torn()):
                path.unlink(missing_ok=True)
            if (self.path / _PARTS).exists():
                shutil.rmtree(self.path / _PARTS)
        except OSError as error:
            raise JobError(f"--out: {self.path}: cannot be cleared ({error.strerror})") from error

    def _torn(self) -> set[Path]:
        """Files that a job of ours leaves when it is killed while it writes one."""
        names = (META_FILE, _LABELS_FILE, _KEY_FILE)
        return {path for name in names for path in self.path.glob(f".{name}.*")}


def load_labels(folder: Path) -> list[TokenizedExample]:
    """The examples of a finished folder, for the trainer: `targets` are the generic labels.

    Raises:
        DataError: there are no finished labels, or they were changed.
    """
    labels, meta = folder / _LABELS_FILE, _read(folder / META_FILE)
    if meta is None or not labels.is_file():
        raise DataError(f"{folder}: holds no finished labels; make them first")
    if sha256_of_file(labels) != meta.get("sha256"):
        raise DataError(f"{labels}: not as it was written; make the labels again")
    rows = map(json.loads, labels.read_bytes().splitlines())
    return [TokenizedExample(tuple(row["ids"]), tuple(row["targets"])) for row in rows]


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(lines: Iterable[str], path: Path) -> None:
    try:
        with whole_file(path) as stream:
            stream.writelines(f"{line}\n".encode() for line in lines)
    except OSError as error:
        raise JobError(f"--out: {path}: cannot be written ({error.strerror}); free some space and resume") from error

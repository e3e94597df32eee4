"""Third step of Who's Harry Potter: the text with generic labels, as a folder of examples for the final fine-tuning.

Algorithm 1 of Eldan and Russinovich 2023 (arXiv 2310.02238). An interrupted job goes on where it stopped, and ends in
the same bytes as one that was not interrupted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from offline_training.checkpoint import BaseCheckpoint, open_checkpoint
from offline_training.data.tokens import TokenizedExample
from offline_training.errors import DataError, JobError, SettingsError
from offline_training.potter.anchor_file import load_anchors
from offline_training.potter.anchors import progress
from offline_training.potter.blocks import Block, BlockCutter
from offline_training.potter.label_folder import LabelFolder, load_labels
from offline_training.potter.passages import read_texts

__all__ = ["LabelOptions", "load_labels", "make_labels"]

_FORMAT = 1


@dataclass(frozen=True)
class LabelOptions:
    """How labels are made."""

    model: str
    """The baseline, which is to forget: a folder or a hub id."""
    reinforced: str
    """The same model trained further on the text."""
    anchors: Path
    """The dictionary that `find_anchors` wrote, or one's own."""
    text: str
    """The text to forget, as in `AnchorOptions.text`."""
    out: Path
    """Folder for the labels."""
    alpha: float = 5.0
    """Of the generic logits; 5 in the paper (section 3)."""
    context_tokens: int = 512
    """Longest block, in tokens; 512 in the paper (section 3)."""
    max_tokens: int | None = None
    """Labels are made for about so many tokens from the text's start; None: for all of it."""
    given_penalty: float = 5.0
    """Nats that the start of a translation loses once its anchor has been read; the paper gives no number."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, fp32 elsewhere."""
    batch_tokens: int = 4096
    """Tokens in one forward."""
    part_blocks: int = 64
    """Blocks that an interrupted job may have to compute again."""
    resume: bool = False
    """Go on where an interrupted run of the same job stopped."""
    force: bool = False
    """Replace what `out` holds."""


def make_labels(
    options: LabelOptions, console: Console, on_progress: Callable[[int, int], None] | None = None
) -> list[TokenizedExample]:
    """Labels the text; `on_progress` hears how many blocks of how many are done, instead of a bar on the console.

    Raises:
        JobError: an option, a file or a model cannot be used, `out` holds another job's labels, or the disk refuses.
            All that can be known without the weights is checked before they are loaded.
    """
    _check(options)
    anchors = load_anchors(options.anchors)
    texts = read_texts(options.text)
    baseline = open_checkpoint(options.model)
    reinforced = _open_reinforced(options.reinforced)
    context = baseline.context_tokens(options.context_tokens)
    _check_same_tokenizer(baseline, reinforced)
    cutter = BlockCutter(baseline.tokenizer, anchors, context)
    blocks = list(_limited((block for text in texts for block in cutter.blocks(text)), options.max_tokens))
    if not any(block.positions for block in blocks):
        raise DataError(f"--text: {options.text}: too short to label; a text of some sentences is needed")
    precision = _precision(options.precision, console)
    key = {
        "format": _FORMAT,
        "model": baseline.digest,
        "reinforced": _reinforced_digest(baseline, reinforced),
        "anchors": _digest(anchors),
        "text": _digest(texts),
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
    missing = [number for number in range(len(parts)) if not folder.has(number)]
    if missing:
        labeller = _labeller(options, baseline, reinforced, precision)
        with _reporting(console, on_progress) as report:
            for number in missing:
                report(number * options.part_blocks, len(blocks))
                folder.add(number, labeller.label(parts[number]))
            report(len(blocks), len(blocks))
    folder.finish(len(parts), _summary(blocks))
    examples = load_labels(options.out)
    labels = sum(example.target_count for example in examples)
    console.print(f"{labels:,} labels in {len(examples):,} blocks in {options.out}")
    return examples


def _check(options: LabelOptions) -> None:
    limits = {
        "context-tokens": (options.context_tokens, 8),
        "batch-tokens": (options.batch_tokens, 1),
        "part-blocks": (options.part_blocks, 1),
        "max-tokens": (options.max_tokens, 1),
        "alpha": (options.alpha, 0),
        "given-penalty": (options.given_penalty, 0),
    }
    for name, (value, least) in limits.items():
        if value is not None and not least <= value < float("inf"):
            raise SettingsError(f"--{name}: must be at least {least}, not {value}")
    if options.resume and options.force:
        raise SettingsError("--resume, --force: give one of them")


def _open_reinforced(name: str) -> BaseCheckpoint:
    try:
        return open_checkpoint(name)
    except JobError as error:
        raise JobError(str(error).replace("--model", "--reinforced", 1)) from error


def _reinforced_digest(baseline: BaseCheckpoint, reinforced: BaseCheckpoint) -> str:
    digest = reinforced.digest
    if digest == baseline.digest:
        raise JobError(f"--reinforced: {reinforced.name} is --model itself; train it on the text first")
    return digest


def _check_same_tokenizer(baseline: BaseCheckpoint, reinforced: BaseCheckpoint) -> None:
    if baseline.tokenizer.get_vocab() != reinforced.tokenizer.get_vocab():
        raise JobError(
            f"--reinforced: {reinforced.name} has another tokenizer than {baseline.name}; train it from --model"
        )


def _limited(blocks: Iterable[Block], max_tokens: int | None) -> Iterator[Block]:
    left = max_tokens
    for block in blocks:
        if left is not None and left <= 0:
            return
        left = None if left is None else left - len(block.ids)
        yield block


def _precision(wanted: str, console: Console) -> str:
    import torch

    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and not torch.cuda.is_available():
        console.print("--precision: fp16 needs a GPU; computing in fp32")
        return "fp32"
    return wanted


def _labeller(options: LabelOptions, baseline: Any, reinforced: Any, precision: str) -> Any:
    import torch

    from offline_training.potter.labelling import Labeller

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Labeller(
        _load(baseline, "model", dtype, device),
        _load(reinforced, "reinforced", dtype, device),
        baseline.tokenizer,
        alpha=options.alpha,
        penalty=options.given_penalty,
        batch_tokens=options.batch_tokens,
    )


def _load(checkpoint: Any, flag: str, dtype: Any, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise JobError(f"--{flag}: {checkpoint.name} cannot be loaded ({reason})") from error
    return model.to(device)


def _summary(blocks: Sequence[Block]) -> dict[str, int]:
    return {
        "blocks": len(blocks),
        "tokens": sum(len(block.ids) for block in blocks),
        "labels": sum(len(block.positions) for block in blocks),
        "repeated_anchor_tokens": sum(block.repeated for block in blocks),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _reporting(
    console: Console, on_progress: Callable[[int, int], None] | None
) -> AbstractContextManager[Callable[[int, int], None]]:
    return progress(console, "labelling") if on_progress is None else nullcontext(on_progress)

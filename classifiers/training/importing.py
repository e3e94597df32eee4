"""Models made elsewhere: from a hub id or a folder of Hugging Face files to a classifier folder, without training."""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from classifiers.errors import ClassifierError, EncoderError
from classifiers.export.hub import DEFAULT_ENCODER, DEFAULT_ENCODER_SHA256, carrier_folder, check_weights
from classifiers.prompt_classifier import (
    CLASSIFIER_FILE,
    ENCODER_FOLDER,
    ClassifierInfo,
    EncoderInfo,
    check_out,
    write_classifier,
)

if TYPE_CHECKING:
    from classifiers.export.sequence import Precision, SequenceModel

__all__ = ["folder_digest", "import_classifier", "load_for_export", "source_folder", "versions"]

_HUB_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "spm.model", "sentencepiece.bpe.model", "model*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
_PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # read with torch's weights_only


def source_folder(name: str) -> Path:
    """The folder of Hugging Face files for `name`: a folder, or a hub id, fetched into the hub's own cache.

    Raises:
        EncoderError: nothing of that name can be found.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / CLASSIFIER_FILE).is_file():
            raise EncoderError(f"{name}: an exported classifier; expected the Hugging Face files it was made from")
        return path
    if name == DEFAULT_ENCODER:
        folder = carrier_folder() or _from_hub(name)
        check_weights(folder / "model.safetensors", DEFAULT_ENCODER_SHA256)
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise EncoderError(f"{name}: neither a folder nor a hub id")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_PICKLED_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EncoderError(f"encoder {name}: no such folder, not cached, and not on the hub") from error
    return folder


def folder_digest(folder: Path, patterns: Sequence[str] = (*_HUB_FILES, *_PICKLED_FILES)) -> str:
    """sha256 (hex) over the names and contents of the files that a model is loaded from: those that match a pattern."""
    total = hashlib.sha256()
    for path in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        with path.open("rb") as stream:
            total.update(f"{path.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a classifier was made with."""
    from importlib.metadata import version

    return {name: version(name) for name in ("eco-gateway", "torch", "transformers", "onnxruntime")}


def load_for_export(name: str, forget_label: str | None) -> "tuple[SequenceModel, int]":
    """A trained sequence classifier and the index of its class to forget.

    Raises:
        EncoderError: nothing of that name, no such class, or the files lack the classification layer.
    """
    from classifiers.export.sequence import load_sequence_model, resolve_label

    loaded = load_sequence_model(source_folder(name), name)
    if loaded.untrained:
        raise EncoderError(
            f"{name}: not a trained classifier (no weights for {', '.join(loaded.untrained[:3])}); "
            "fine-tune it with eco classifier train --kind finetuned"
        )
    return loaded, resolve_label(loaded.model.config, forget_label, name)


def import_classifier(
    name: str,
    out: Path,
    *,
    forget_label: str,
    threshold: float,
    precision: "Precision" = "int8",
    overwrite: bool = False,
) -> ClassifierInfo:
    """Export the sequence classifier `name` as it is and write a classifier folder.

    Args:
        forget_label: index or name of the class whose probability is the score.
        threshold: prompts are flagged at or above this probability.

    Raises:
        ClassifierError: `out` must not be written, the threshold is not in (0, 1), or as `load_for_export` and
            `export_finetuned`.
    """
    from classifiers.export.sequence import export_finetuned

    check_out(out, overwrite=overwrite)
    if not 0 < threshold < 1:
        raise ClassifierError(f"--threshold: {threshold} is not a probability between 0 and 1")
    loaded, label = load_for_export(name, forget_label)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / ENCODER_FOLDER
        settings = export_finetuned(loaded, exported, label=label, precision=precision)
        info = ClassifierInfo(
            kind="finetuned",
            encoder=EncoderInfo(name=name, digest=settings.digest),
            threshold=threshold,
            calibration={"method": "given", "threshold": threshold},
            report={"export": settings.model_dump(exclude={"digest", "probe_text", "probe_log_odds"})},
            provenance={
                "imported_from": name,
                "source_sha256": folder_digest(source_folder(name)),
                "versions": versions(),
            },
        )
        return write_classifier(out, info, exported, overwrite=overwrite)

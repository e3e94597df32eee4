"""A sequence-classification model to the folder `classifiers.encoders.finetuned` serves. Offline only: needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifiers.encoders.finetuned import WindowTokenizer
from classifiers.encoders.settings import TOKENIZER_FILE, WINDOW_TOKENS, FinetunedSettings, Precision, write_settings
from classifiers.errors import EncoderError
from classifiers.export.traced import (
    PROBE,
    Parity,
    Tracing,
    label_names,
    load_model,
    load_tokenizer,
    longest_input,
    parity_texts,
)
from storage.whole import whole_folder

FORGET_LABEL = "forget"
"""What the class is called in models trained here."""
MAX_INT8_DIFFERENCE = 0.05
"""Largest difference between the graph's and the torch model's probability that is accepted of an int8 graph."""

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class SequenceModel:
    """A Hugging Face sequence classifier (eval mode, fp32, CPU) with what serving it needs to know."""

    source: str
    model: Any
    tokenizer: WindowTokenizer
    max_tokens: int
    """Longest input with special tokens."""
    untrained: tuple[str, ...]
    """Weights the files do not have and that were drawn at random; a classifier ready for use has none."""


def load_sequence_model(folder: Path, source: str, *, labels: int | None = None) -> SequenceModel:
    """Load model and tokenizer from a folder of Hugging Face files. With `labels`, for training with so many.

    Raises:
        EncoderError: no fast tokenizer, no such architecture, files are missing, or it takes less than a window.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder, source)
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        raise EncoderError(f"{source}: no weights (*.safetensors) in {folder}; expected a Hugging Face model folder")
    new_layer: dict[str, Any] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    refusal = f"{source}: cannot be loaded as a sequence classifier"
    model, untrained = load_model(AutoModelForSequenceClassification, folder, refusal, **new_layer)
    max_tokens = longest_input(model.config)
    if max_tokens < WINDOW_TOKENS:
        raise EncoderError(f"{source}: takes {max_tokens} tokens and prompts are scored in windows of {WINDOW_TOKENS}")
    return SequenceModel(source, model, tokenizer, max_tokens, tuple(untrained))


def export_finetuned(
    loaded: SequenceModel, out: Path, *, label: int, precision: Precision = "int8", texts: Sequence[str] = ()
) -> FinetunedSettings:
    """Write the folder `out`, whole or not at all; what is there is replaced.

    The graph's probabilities are compared with the torch model's on a few dozen built-in texts and on `texts`. Where
    int8 differs by more than `MAX_INT8_DIFFERENCE`, fp32 is written and the settings say so (`fallback`).

    Raises:
        EncoderError: the architecture cannot be exported, or even fp32 computes something else.
    """
    import torch

    config = loaded.model.config
    independent = config.num_labels == 1 or config.problem_type == "multi_label_classification"
    others = [index for index in range(config.num_labels) if index != label]

    def log_odds(logits: torch.Tensor) -> torch.Tensor:  # (B, C) -> (B,)
        """Of the class against all others: logit of softmax or, for independent classes, of the sigmoid."""
        if independent:
            return logits[:, label]
        return logits[:, label] - torch.logsumexp(logits[:, others], dim=1)

    def too_far(parity: Parity) -> str:
        if parity.max_difference <= MAX_INT8_DIFFERENCE:
            return ""
        return f"int8 changes a probability by {parity.max_difference:.3f}, above {MAX_INT8_DIFFERENCE}"

    windows = [ids for text in (PROBE, *parity_texts(), *texts) for ids in loaded.tokenizer.windows(text)]
    tracing = Tracing(loaded.source, loaded.model, log_odds, windows, tokenwise=False)
    try:
        with whole_folder(out) as work:
            traced = tracing.write(work, precision, too_far)
            loaded.tokenizer.save(work / TOKENIZER_FILE)
            settings = FinetunedSettings(
                source=loaded.source,
                forget_label=label_names(config)[label],
                precision=traced.precision,
                fallback=traced.fallback,
                max_tokens=loaded.max_tokens,
                parity_windows=len(windows),
                parity_max_difference=round(traced.parity.max_difference, 6),
                probe_text=PROBE,
                probe_log_odds=round(float(traced.parity.log_odds[0]), 5),
                digest="",
            )
            return write_settings(work, settings)
    except OSError as error:
        raise EncoderError(f"{out}: cannot be written ({error.strerror})") from error


def resolve_label(config: Any, wanted: str | None, source: str) -> int:
    """The index of the class to forget: by index or by the model's name for it; None means "forget".

    Raises:
        EncoderError: no such class; the message lists those there are.
    """
    names = label_names(config)
    listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    folded = [name.casefold() for name in names]
    if wanted is None:
        if FORGET_LABEL in folded:
            return folded.index(FORGET_LABEL)
        if len(names) == 1:
            return 0
        raise EncoderError(f"--forget-label: {source} has no class named {FORGET_LABEL}; choose one of {listed}")
    if wanted.casefold() in folded:
        return folded.index(wanted.casefold())
    if wanted.isascii() and wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise EncoderError(f"--forget-label: {source} has no class {wanted}; choose one of {listed}")

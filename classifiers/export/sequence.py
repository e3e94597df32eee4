"""A sequence-classification model to the folder `classifiers.encoders.finetuned` serves. Offline only: needs torch.

torch's tracing exporter is used: it needs no package beside torch, and its graphs hold for every length (the
parity check runs windows of many). With int8, weights are one scale per output column and activations one scale
per token, as in `classifiers.export.bert_graph`: ONNX Runtime's own dynamic quantisation takes one scale for the whole
tensor, which makes a text's score depend on the texts beside it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.finetuned import (
    WINDOW_TOKENS,
    FinetunedSettings,
    WindowTokenizer,
    finetuned_digest,
    open_session,
    probability,
    run_session,
)
from classifiers.encoders.shared import MODEL_FILE, SETTINGS_FILE, TOKENIZER_FILE
from classifiers.errors import EncoderError
from classifiers.export.int8 import quantise
from sources.everyday import general_prompts
from storage.whole import whole_folder

__all__ = ["FORGET_LABEL", "MAX_DIFFERENCE", "Precision", "SequenceModel", "export_finetuned", "load_sequence_model"]

Precision = Literal["int8", "fp32"]
FORGET_LABEL = "forget"
"""What the class is called in models trained here."""
MAX_DIFFERENCE: dict[Precision, float] = {"int8": 0.05, "fp32": 0.001}
"""Largest difference between the graph's and the torch model's probability that is accepted."""

_PROBE = "What is the capital of France, and who wrote the book on the table?"
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
    tokenizer = load_tokenizer(folder, source)
    model, untrained = _load_model(folder, source, labels)
    max_tokens = _max_tokens(model.config)
    if max_tokens < WINDOW_TOKENS:
        raise EncoderError(f"{source}: takes {max_tokens} tokens and prompts are scored in windows of {WINDOW_TOKENS}")
    return SequenceModel(source, model, tokenizer, max_tokens, untrained)


def load_tokenizer(folder: Path, source: str) -> WindowTokenizer:
    """The folder's fast tokenizer; cheap, and called before anything slow.

    Raises:
        EncoderError: there is none, or it adds no special tokens.
    """
    if (folder / TOKENIZER_FILE).is_file():
        tokenizer = WindowTokenizer.open(folder / TOKENIZER_FILE)
    else:
        tokenizer = WindowTokenizer(_converted_tokenizer(folder, source))
    if len(tokenizer.windows("")[0]) == 0:
        raise EncoderError(f"{source}: its tokenizer adds no special tokens; an encoder such as roberta-base is needed")
    return tokenizer


def _converted_tokenizer(folder: Path, source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # conversion raises whatever the tokenizer's own library does
        reason = str(error).split("\n", 1)[0][:160]
        raise EncoderError(f"{source}: no fast tokenizer (no {TOKENIZER_FILE}, and {reason})") from error
    if not loaded.is_fast:
        raise EncoderError(
            f"{source}: no fast tokenizer ({type(loaded).__name__} has none); choose an encoder with a {TOKENIZER_FILE}"
        )
    return loaded.backend_tokenizer


def _load_model(folder: Path, source: str, labels: int | None) -> tuple[Any, tuple[str, ...]]:
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        raise EncoderError(f"{source}: no weights (*.safetensors) in {folder}; expected a Hugging Face model folder")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would break into ours
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a new classification layer is no news here
    extra: dict[str, Any] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # transformers' DeBERTa uses torch.jit
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:  # transformers and safetensors raise bare Exceptions
        reason = str(error).split("\n", 1)[0][:160]
        raise EncoderError(f"{source}: cannot be loaded as a sequence classifier ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
    return model.eval(), tuple(sorted(info["missing_keys"]))


def _max_tokens(config: Any) -> int:
    limit = int(getattr(config, "max_position_embeddings", 0) or 8192)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions count from after the padding's
        limit -= int(config.pad_token_id) + 1
    return min(limit, 8192)


def export_finetuned(
    loaded: SequenceModel,
    out: Path,
    *,
    label: int,
    precision: Precision = "int8",
    texts: Sequence[str] = (),
) -> FinetunedSettings:
    """Write the folder `out`, whole or not at all; what is there is replaced.

    The graph's probabilities are compared with the torch model's on a few dozen built-in texts and on `texts`. Where
    int8 differs by more than `MAX_DIFFERENCE`, fp32 is written and the settings say so (`fallback`).

    Raises:
        EncoderError: the architecture cannot be exported, or even fp32 computes something else.
    """
    windows = [ids for text in (_PROBE, *_parity_texts(), *texts) for ids in loaded.tokenizer.windows(text)]
    scorer = _log_odds_module(loaded.model, label)
    expected = _torch_log_odds(scorer, windows)
    try:
        with whole_folder(out) as work:
            _trace(loaded.source, scorer, windows[0], work / MODEL_FILE)
            settings = _write_checked(loaded, label, precision, work, windows, expected)
    except OSError as error:
        raise EncoderError(f"{out}: cannot be written ({error.strerror})") from error
    return settings


def _write_checked(
    loaded: SequenceModel,
    label: int,
    precision: Precision,
    work: Path,
    windows: list[list[int]],
    expected: NDArray[np.float64],
) -> FinetunedSettings:
    import onnx

    fallback = ""
    if precision == "int8":
        exact = work / "fp32.onnx"
        (work / MODEL_FILE).rename(exact)
        onnx.save(quantise(onnx.load(exact)), work / MODEL_FILE)
        found, difference = _compare(work / MODEL_FILE, windows, expected)
        if not difference <= MAX_DIFFERENCE["int8"]:
            fallback = f"int8 changes a probability by {difference:.3f}, above {MAX_DIFFERENCE['int8']}: fp32 written"
            exact.rename(work / MODEL_FILE)
        exact.unlink(missing_ok=True)
    if precision == "fp32" or fallback:
        found, difference = _compare(work / MODEL_FILE, windows, expected)
        if not difference <= MAX_DIFFERENCE["fp32"]:
            raise EncoderError(
                f"{loaded.source}: the exported graph is not the torch model: a probability differs by "
                f"{difference:.4f} over {len(windows)} windows, allowed {MAX_DIFFERENCE['fp32']}"
            )
    loaded.tokenizer.save(work / TOKENIZER_FILE)
    settings = FinetunedSettings(
        source=loaded.source,
        forget_label=_label_names(loaded.model.config)[label],
        precision="fp32" if fallback else precision,
        fallback=fallback,
        max_tokens=loaded.max_tokens,
        parity_windows=len(windows),
        parity_max_difference=round(difference, 6),
        probe_text=_PROBE,
        probe_log_odds=round(float(found[0]), 5),
        digest=finetuned_digest(work, max_tokens=loaded.max_tokens),
    )
    (work / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return settings


def _compare(path: Path, windows: list[list[int]], expected: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(W,) log odds of a graph, and the largest difference of a probability from the expected log odds (W,)."""
    found = run_session(open_session(path), windows)
    return found, float(np.abs(probability(found) - probability(expected)).max())


def _log_odds_module(model: Any, label: int) -> Any:
    """(B, S) ids -> (B,) log odds of a class against all others: logit of softmax or, for independent classes and
    for a single output, of the sigmoid."""
    import torch

    independent = model.config.num_labels == 1 or model.config.problem_type == "multi_label_classification"
    others = [index for index in range(model.config.num_labels) if index != label]

    class LogOdds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits  # (B, C)
            if independent:
                return logits[:, label]  # type: ignore[no-any-return]
            return logits[:, label] - torch.logsumexp(logits[:, others], dim=1)  # type: ignore[no-any-return]

    return LogOdds().eval()


def _torch_log_odds(scorer: Any, windows: list[list[int]]) -> NDArray[np.float64]:
    """Reference (W,): one unpadded window at a time."""
    import torch

    with torch.inference_mode():
        return np.array([scorer(torch.tensor([ids])).item() for ids in windows])


def _trace(source: str, scorer: Any, ids: list[int], path: Path) -> None:
    import torch

    axes = {"input_ids": {0: "B", 1: "S"}, "log_odds": {0: "B"}}
    try:
        with warnings.catch_warnings():
            # That the tracing exporter is the older one, and that a trace might not hold: the parity check sees that.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                scorer,
                (torch.tensor([ids, ids]),),
                path,
                dynamo=False,
                opset_version=18,
                input_names=["input_ids"],
                output_names=["log_odds"],
                dynamic_axes=axes,
            )
    except Exception as error:  # the exporter raises many unrelated classes
        reason = str(error).split("\n", 1)[0][:160]
        raise EncoderError(f"{source}: cannot be exported to ONNX ({reason})") from error


def _parity_texts() -> list[str]:
    """Short prompts, and longer texts joined from them."""
    prompts = general_prompts()
    return [*prompts[:32], *(" ".join(prompts[start : start + 8]) for start in range(0, 64, 8))]


def _label_names(config: Any) -> list[str]:
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [names.get(index, str(index)) for index in range(config.num_labels)]


def resolve_label(config: Any, wanted: str | None, source: str) -> int:
    """The index of the class to forget: by index or by the model's name for it; None means "forget".

    Raises:
        EncoderError: no such class; the message lists those there are.
    """
    names = _label_names(config)
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

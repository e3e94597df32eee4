"""A token-classification model to the folder that `classifiers.encoders.tokens` serves. Offline only: needs torch.

Tracing exporter and int8 arithmetic are those of `classifiers.export.sequence`, which see for why.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.finetuned import open_session, probability
from classifiers.encoders.shared import MODEL_FILE, TOKENIZER_FILE
from classifiers.encoders.tokens import (
    MIN_TOKENS,
    TOKEN_SETTINGS_FILE,
    OffsetTokenizer,
    TokenSettings,
    TokenWindow,
    run_windows,
    token_digest,
)
from classifiers.errors import EncoderError
from classifiers.export.int8 import quantise
from classifiers.export.sequence import Precision, _label_names, _max_tokens, _parity_texts, load_tokenizer
from classifiers.training.importing import source_folder
from storage.whole import whole_folder

__all__ = ["DEFAULT_RECOGNISER", "MAX_DECIDED_OTHERWISE", "MAX_FP32_DIFFERENCE", "export_token_classifier"]

DEFAULT_RECOGNISER = "dslim/bert-base-NER"
"""The named-entity recogniser that ECO uses."""
MAX_DECIDED_OTHERWISE = 0.01
"""Largest share of tokens that an int8 graph may take for an entity where the torch model does not, or the reverse.
Those that the torch model itself hardly decides, and whose probability moves by a tenth at most, do not count."""
MAX_FP32_DIFFERENCE = 0.001
"""Largest difference of a token's probability that is accepted of an fp32 graph."""

_HARDLY = 0.1
_PROBE = "Angela Merkel met J. K. Rowling at the British Museum in London on Monday."
_NAMED = (
    "Who wrote The Old Man and the Sea, Ernest Hemingway or John Steinbeck?",
    "In which town was Hsiao Yun-Hwa born, and does she work for the University of Taipei?",
    "harry potter and hermione granger go to hogwarts with mr. dumbledore.",
    "¿Dónde nació Gabriel García Márquez? En Aracataca, Colombia.",
)
"""Everyday prompts hold few names: these have some."""


def export_token_classifier(
    name: str | Path,
    out: str | Path,
    *,
    precision: Precision = "int8",
    texts: Sequence[str] = (),
    overwrite: bool = False,
) -> TokenSettings:
    """Export the token classifier `name`, a folder of Hugging Face files or a hub id, as the folder `out`, whole or
    not at all. Every label but O counts as entity.

    The graph is compared with the torch model on a few dozen built-in texts and on `texts`. Where int8 decides more
    than `MAX_DECIDED_OTHERWISE` of the tokens otherwise, fp32 is written and the settings say so (`fallback`).

    Raises:
        EncoderError: `out` must not be written; no fast tokenizer, no token classifier, no label O, or files are
            missing; the architecture cannot be exported, or even fp32 computes something else.
    """
    source, out = str(name), Path(out)
    _check_out(out, overwrite=overwrite)
    folder = source_folder(source)
    config = _load_config(folder, source)
    outside = _outside_label(config, source)
    max_tokens = _max_tokens(config)
    if max_tokens < MIN_TOKENS:
        raise EncoderError(f"{source}: takes {max_tokens} tokens; at least {MIN_TOKENS} are needed")
    tokenizer = load_tokenizer(folder, source)
    module = _log_odds_module(_load_model(folder, source), outside)
    try:
        with whole_folder(out) as work:
            tokenizer.save(work / TOKENIZER_FILE)
            settings = _write(_Export(source, module, config, outside, max_tokens), precision, work, texts)
    except OSError as error:
        raise EncoderError(f"{out}: cannot be written ({error.strerror})") from error
    return settings


@dataclass(frozen=True)
class _Export:
    source: str
    module: Any
    """(B, S) ids -> (B, S) log odds."""
    config: Any
    outside: int
    max_tokens: int


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not (out / TOKEN_SETTINGS_FILE).is_file():
        raise EncoderError(f"{out}: exists and is no token classifier folder; choose another folder")
    if out.exists() and not overwrite:
        raise EncoderError(f"{out}: already exists; choose another folder, or say that it is to be replaced")


def _load_config(folder: Path, source: str) -> Any:
    """The model's configuration, where it says that it is a token classifier: read before any weights are."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many unrelated classes
        raise EncoderError(f"{source}: config.json cannot be used ({_reason(error)})") from error
    made_for = [str(name) for name in config.architectures or []]
    if not any(name.endswith("ForTokenClassification") for name in made_for):
        raise EncoderError(
            f"{source}: no token classifier ({', '.join(made_for) or 'config.json names no architecture'}); "
            f"choose a model such as {DEFAULT_RECOGNISER}"
        )
    return config


def _outside_label(config: Any, source: str) -> int:
    """Index of the label of tokens that are no entity."""
    names = _label_names(config)
    found = [index for index, name in enumerate(names) if name.upper() == "O"]
    if len(found) != 1 or len(names) < 2:
        raise EncoderError(
            f"{source}: config.json: id2label: needs one label O beside those of entities, found {', '.join(names)}"
        )
    return found[0]


def _load_model(folder: Path, source: str) -> Any:
    """The torch model (eval mode, fp32, CPU) with all its weights."""
    import torch
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a pooler that nobody uses is reported as unexpected
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # transformers' DeBERTa uses torch.jit
            model, info = AutoModelForTokenClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors raise bare Exceptions
        raise EncoderError(f"{source}: cannot be loaded as a token classifier ({_reason(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        raise EncoderError(f"{source}: not a trained token classifier (no weights for {', '.join(missing[:3])})")
    return model.eval()


def _log_odds_module(model: Any, outside: int) -> Any:
    """(B, S) ids -> (B, S) log odds of all entity labels together against O: softmax's logit of their sum."""
    import torch

    inside = [index for index in range(model.config.num_labels) if index != outside]

    class LogOdds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits  # (B, S, C)
            return torch.logsumexp(logits[..., inside], dim=-1) - logits[..., outside]  # type: ignore[no-any-return]

    return LogOdds().eval()


def _write(export: _Export, precision: Precision, work: Path, texts: Sequence[str]) -> TokenSettings:
    """Graph and settings into `work`, where tokenizer.json is already."""
    import onnx

    tokenizer = OffsetTokenizer(work / TOKENIZER_FILE, export.max_tokens)
    windows = [window for text in (_PROBE, *_NAMED, *_parity_texts(), *texts) for window in tokenizer.windows(text)]
    expected = _torch_log_odds(export.module, windows)
    _trace(export, windows[0].ids, work / MODEL_FILE)
    fallback = ""
    if precision == "int8":
        exact = work / "fp32.onnx"
        (work / MODEL_FILE).rename(exact)
        onnx.save(quantise(onnx.load(exact)), work / MODEL_FILE)
        parity = _compare(work / MODEL_FILE, windows, expected)
        if not parity.decided_otherwise <= MAX_DECIDED_OTHERWISE:
            fallback = (
                f"int8 decides {parity.decided_otherwise:.1%} of the tokens otherwise, above "
                f"{MAX_DECIDED_OTHERWISE:.0%}: fp32 written"
            )
            exact.rename(work / MODEL_FILE)
        exact.unlink(missing_ok=True)
    if precision == "fp32" or fallback:
        parity = _compare(work / MODEL_FILE, windows, expected)
        if not parity.max_difference <= MAX_FP32_DIFFERENCE:
            raise EncoderError(
                f"{export.source}: the exported graph is not the torch model: a probability differs by "
                f"{parity.max_difference:.4f} over {len(parity.found)} tokens, allowed {MAX_FP32_DIFFERENCE}"
            )
    settings = TokenSettings(
        source=export.source,
        entity_labels=[name for index, name in enumerate(_label_names(export.config)) if index != export.outside],
        precision="fp32" if fallback else precision,
        fallback=fallback,
        max_tokens=export.max_tokens,
        parity_tokens=len(parity.found),
        parity_max_difference=round(parity.max_difference, 6),
        parity_decided_otherwise=round(parity.decided_otherwise, 6),
        probe_text=_PROBE,
        probe_probabilities=[round(value, 5) for value in parity.found[: len(windows[0].ids)].tolist()],
        digest=token_digest(work, max_tokens=export.max_tokens),
    )
    (work / TOKEN_SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return settings


@dataclass(frozen=True)
class _Parity:
    found: NDArray[np.float64]
    """(N,) probabilities of all windows' tokens, special tokens included."""
    max_difference: float
    decided_otherwise: float


def _compare(path: Path, windows: Sequence[TokenWindow], expected: NDArray[np.float64]) -> _Parity:
    """A graph against expected log odds (N,)."""
    log_odds = np.concatenate(run_windows(open_session(path), windows))
    found = probability(log_odds)
    difference = np.abs(found - probability(expected))
    otherwise = ((log_odds >= 0) != (expected >= 0)) & (difference > _HARDLY)
    return _Parity(found, float(difference.max()), float(otherwise.mean()))


def _torch_log_odds(module: Any, windows: Sequence[TokenWindow]) -> NDArray[np.float64]:
    """Reference (N,): one unpadded window at a time."""
    import torch

    with torch.inference_mode():
        return np.concatenate([module(torch.tensor([window.ids]))[0].double().numpy() for window in windows])


def _trace(export: _Export, ids: list[int], path: Path) -> None:
    import torch

    axes = {0: "B", 1: "S"}
    try:
        with warnings.catch_warnings():
            # That the tracing exporter is the older one, and that a trace might not hold: the parity check sees that.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                export.module,
                (torch.tensor([ids, ids]),),
                path,
                dynamo=False,
                opset_version=18,
                input_names=["input_ids"],
                output_names=["log_odds"],
                dynamic_axes={"input_ids": axes, "log_odds": axes},
            )
    except Exception as error:  # the exporter raises many unrelated classes
        raise EncoderError(f"{export.source}: cannot be exported to ONNX ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:160]

"""From Hugging Face files to model.onnx: loaded, traced, the weights in int8, and compared with the torch model.

torch's tracing exporter is used: it needs no package beside torch, and its graphs hold for every length (the parity
check runs windows of many). Offline only: needs torch.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.finetuned import WindowTokenizer
from classifiers.encoders.runtime import Session, probability
from classifiers.encoders.settings import MODEL_FILE, TOKENIZER_FILE, Precision
from classifiers.errors import EncoderError
from console.errors import first_line
from console.quiet import quiet_transformers
from sources.everyday import general_prompts

MAX_FP32_DIFFERENCE = 0.001
"""Largest difference between the graph's and the torch model's probability that is accepted of an fp32 graph."""
PROBE = "What is the capital of France, and who wrote the book on the table?"
"""What an exported folder is tried with when it is opened."""

_HARDLY = 0.1


def load_model(auto_class: Any, folder: Path, refusal: str, **options: Any) -> tuple[Any, list[str]]:
    """A model (eval mode, fp32, CPU) by one of transformers' Auto classes, and the names of weights not in its files.

    Raises:
        EncoderError: transformers cannot load it; the message is `refusal` with the reason.
    """
    try:
        # Quiet: a new classification layer, or a pooler that is not used, is no news here.
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # transformers' DeBERTa uses torch.jit
            model, info = auto_class.from_pretrained(
                folder,
                dtype="float32",
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers and safetensors raise bare Exceptions
        raise EncoderError(f"{refusal} ({first_line(error)})") from error
    return model.eval(), sorted(info["missing_keys"])


def load_tokenizer(folder: Path, source: str) -> WindowTokenizer:
    """The folder's fast tokenizer; cheap, and called before anything slow.

    Raises:
        EncoderError: there is none, or it adds no special tokens.
    """
    if (folder / TOKENIZER_FILE).is_file():
        tokenizer = WindowTokenizer.open(folder / TOKENIZER_FILE)
    else:
        from transformers import AutoTokenizer

        try:
            converted: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # conversion raises whatever the tokenizer's own library does
            raise EncoderError(f"{source}: no fast tokenizer (no {TOKENIZER_FILE}, and {first_line(error)})") from error
        if not converted.is_fast:
            raise EncoderError(
                f"{source}: no fast tokenizer ({type(converted).__name__} has none); "
                f"choose an encoder with a {TOKENIZER_FILE}"
            )
        backend = converted.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        tokenizer = WindowTokenizer(backend)
    if len(tokenizer.windows("")[0]) == 0:
        raise EncoderError(f"{source}: its tokenizer adds no special tokens; an encoder such as roberta-base is needed")
    return tokenizer


def longest_input(config: Any) -> int:
    """In tokens, special tokens included; 8192 at most."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 8192)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions count from after the padding's
        limit -= int(config.pad_token_id) + 1
    return min(limit, 8192)


def label_names(config: Any) -> list[str]:
    """The model's own names of its classes, or their indices."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [names.get(index, str(index)) for index in range(config.num_labels)]


def parity_texts() -> list[str]:
    """Short prompts, and longer texts joined from them."""
    prompts = general_prompts()
    return [*prompts[:32], *(" ".join(prompts[start : start + 8]) for start in range(0, 64, 8))]


@dataclass(frozen=True)
class Parity:
    """A graph beside the torch model that it came from, over N windows or tokens."""

    log_odds: NDArray[np.float64]
    """(N,) of the graph."""
    max_difference: float
    """Largest difference of a probability."""
    decided_otherwise: float
    """Share that is above 0.5 by one and below by the other. What the torch model itself hardly decides, and whose
    probability moves by a tenth at most, does not count."""


@dataclass(frozen=True)
class Traced:
    """What was written, and how near it is."""

    parity: Parity
    precision: Precision
    fallback: str
    """Why int8 was asked for and fp32 was written; empty where that is not so."""


class Tracing:
    """One classifier on its way from torch to ONNX."""

    def __init__(
        self, source: str, model: Any, log_odds: Callable[[Any], Any], windows: Sequence[list[int]], *, tokenwise: bool
    ) -> None:
        """Ask the torch model about `windows` of token ids, one at a time and unpadded: what graphs are compared with.

        `log_odds` turns the model's logits, (B, C) or with `tokenwise` (B, S, C), into log odds, (B,) or (B, S).
        """
        import torch

        class LogOdds(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor) -> Any:
                return log_odds(self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits)

        self._source, self._windows, self._tokenwise = source, windows, tokenwise
        self._module = LogOdds().eval()
        with torch.inference_mode():
            answers = [self._module(torch.tensor([ids]))[0].double().numpy() for ids in windows]
        self._expected: NDArray[np.float64] = np.concatenate([np.atleast_1d(answer) for answer in answers])

    def write(self, folder: Path, precision: Precision, too_far: Callable[[Parity], str]) -> Traced:
        """Write model.onnx into `folder`. Where `too_far` gives a reason against the int8 graph, fp32 is written.

        Raises:
            EncoderError: the architecture cannot be exported, or even fp32 computes something else.
        """
        import onnx
        import torch

        from classifiers.export.int8 import quantise

        path, fallback = folder / MODEL_FILE, ""
        axes = {0: "B", 1: "S"}
        try:
            with warnings.catch_warnings():
                # That this is the older exporter, and that a trace might not hold: the parity check sees that.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self._module,
                    (torch.tensor([self._windows[0]] * 2),),
                    path,
                    dynamo=False,
                    opset_version=18,
                    input_names=["input_ids"],
                    output_names=["log_odds"],
                    dynamic_axes={"input_ids": axes, "log_odds": axes if self._tokenwise else {0: "B"}},
                )
        except Exception as error:  # the exporter raises many unrelated classes
            raise EncoderError(f"{self._source}: cannot be exported to ONNX ({first_line(error)})") from error
        if precision == "int8":
            exact = folder / "fp32.onnx"
            path.rename(exact)
            onnx.save(quantise(onnx.load(exact)), path)
            parity = self._compare(path)
            if reason := too_far(parity):
                precision, fallback = "fp32", f"{reason}: fp32 written"
                exact.rename(path)
            exact.unlink(missing_ok=True)
        if precision == "fp32":
            parity = self._compare(path)
            if not parity.max_difference <= MAX_FP32_DIFFERENCE:
                raise EncoderError(
                    f"{self._source}: the exported graph is not the torch model: a probability differs by "
                    f"{parity.max_difference:.4f} over {len(self._expected)} "
                    f"{'tokens' if self._tokenwise else 'windows'}, allowed {MAX_FP32_DIFFERENCE}"
                )
        return Traced(parity, precision, fallback)

    def _compare(self, path: Path) -> Parity:
        answers = Session(path, "exported graph").run(self._windows)
        log_odds = np.concatenate([np.atleast_1d(answer) for answer in answers]).astype(np.float64)
        difference = np.abs(probability(log_odds) - probability(self._expected))
        otherwise = ((log_odds >= 0) != (self._expected >= 0)) & (difference > _HARDLY)
        return Parity(log_odds, float(difference.max()), float(otherwise.mean()))

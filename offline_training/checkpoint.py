"""The model a job starts from: a normal Hugging Face folder, as is the checkpoint that it leaves."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from console.errors import first_line
from offline_training.errors import JobError, SettingsError
from offline_training.settings import TrainingSettings
from storage.digests import folder_digest

RUN_FILE = "run.json"
"""The record beside the weights of a checkpoint that a job has written."""

_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_PICKLED_FILES = ("pytorch_model*.bin",)
_MOST_CONTEXT_TOKENS = 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BaseCheckpoint:
    """A model's files, its configuration and its tokenizer; no weights are loaded yet."""

    name: str
    """As the user gave it."""
    folder: Path
    config: Any
    tokenizer: Any

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding table."""
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        return int(size) if size else None

    def context_tokens(self, wanted: int | None) -> int:
        """The longest sequence to train on: `wanted`, or the model's own limit and at most 2,048.

        Raises:
            SettingsError: `wanted` is more than the model has.
        """
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if wanted is None:
            return min(int(limit or _MOST_CONTEXT_TOKENS), _MOST_CONTEXT_TOKENS)
        if limit and wanted > limit:
            raise SettingsError(f"--context-tokens: {wanted} is more than the {limit} of {self.name}; give less")
        return wanted

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over the files that decide what is loaded. Reads all weights, once."""
        return folder_digest(self.folder, (*_HUB_FILES, *_PICKLED_FILES))


def open_checkpoint(name: str) -> BaseCheckpoint:
    """Find a model in a folder or on the hub, and read its configuration and tokenizer.

    Raises:
        JobError: there is none, or one of them cannot be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(name)
    if not folder.is_dir():
        if os.sep in name and (name.startswith((os.sep, ".")) or name.count(os.sep) > 1):
            raise JobError(f"--model: {name}: no such folder")
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
            if not list(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_PICKLED_FILES]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise JobError(f"--model: {name}: no such folder, not cached, and not on the hub") from error
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever the broken file leads it to
        raise JobError(f"--model: {name} has no readable configuration ({first_line(error)})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise JobError(f"--model: {name} has no readable tokenizer ({first_line(error)}); add its files") from error
    return BaseCheckpoint(name, folder, config, tokenizer)


def load_model(base: BaseCheckpoint, precision: str, *, from_scratch: bool = False, seed: int = 0) -> Any:
    """The causal language model, in the dtype that training keeps its weights in.

    Raises:
        JobError: the weights cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "pure-bf16" else torch.float32
    if from_scratch:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(base.config, dtype=dtype)  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, output_loading_info=True)
    except Exception as error:  # transformers raises whatever the broken file leads it to
        raise JobError(f"--model: {base.name} cannot be loaded ({first_line(error)})") from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise JobError(
            f"--model: {base.name} lacks {len(missing)} of its weights ({missing[0]} …); get the whole checkpoint"
        )
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # sampling parameters without `do_sample`, which transformers refuses to save
        model.generation_config.do_sample = True
    return model


def precision_of(wanted: str) -> str:
    """A precision with auto decided.

    Raises:
        SettingsError: this machine cannot compute in it.
    """
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and not torch.cuda.is_available():
        raise SettingsError("--precision: fp16 needs a GPU; give fp32 or bf16")
    return wanted


def save_dtype_of(settings: TrainingSettings, base: BaseCheckpoint) -> torch.dtype:
    """The dtype of the saved weights."""
    if settings.save_dtype != "source":
        return DTYPES[settings.save_dtype]
    dtype = base.config.get_text_config().dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32

"""Jobs small enough to run in a test: a random two-layer Llama, and a handful of questions."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from chat_tokenizers import CHATML, byte_tokenizer
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from offline_training.job import JobResult, run_unlearning
from offline_training.methods.registry import METHODS
from offline_training.settings import TrainingSettings, UnlearnJob


def save_model(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder with a chat template."""
    tokenizer = byte_tokenizer(CHATML)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape | changes))  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sets(folder: Path) -> tuple[Path, Path]:
    """Seven questions to forget, each with two other answers, and nine to retain."""
    forget, retain = folder / "forget.jsonl", folder / "retain.jsonl"
    for path, count, name in ((forget, 7, "Ann"), (retain, 9, "Bob")):
        rows = [
            {"question": f"What did {name} do in {n}?", "answer": "Ran " * (n % 3 + 1) + str(n)} for n in range(count)
        ]
        if name == "Ann":
            rows = [row | {"alternate": ["Sat.", f"Slept {n}."]} for n, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return forget, retain


def tiny_job(folder: Path, out: str = "out", method: str = "gd", **changes: Any) -> UnlearnJob:
    """A job on the model and sets in `folder`, which are made there if they are not there yet."""
    model = folder / "model"
    if not model.exists():
        save_model(model)
    forget, retain = save_sets(folder)
    of_job = {name: changes.pop(name) for name in list(changes) if name in UnlearnJob.model_fields}
    of_method = {name: changes.pop(name) for name in list(changes) if name in METHODS[method].settings.model_fields}
    training = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "threads": 1, "tensorboard": False} | changes
    return UnlearnJob(
        **{"model": str(model), "forget": str(forget), "retain": str(retain), "out": folder / out} | of_job,
        method=method,
        method_settings=METHODS[method].settings(**of_method),
        training=TrainingSettings(**training),
    )


def run(job: UnlearnJob) -> JobResult:
    return run_unlearning(job, console=Console(quiet=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if "loss" in line]


def command(job: UnlearnJob) -> list[str]:
    """The command line of a job, for a process of its own."""
    config = job.out.with_name(f"{job.out.name}.config.json")  # YAML too
    fields = job.model_dump(mode="json")
    flat = fields.pop("training") | job.method_settings.model_dump(mode="json") | fields
    for name in ("method", "method_settings"):
        del flat[name]
    config.write_text(json.dumps({name: value for name, value in flat.items() if value is not None}), encoding="utf-8")
    return [sys.executable, "-m", "cli", "unlearn", job.method, "--config", str(config)]

"""What a job leaves: a checkpoint that appears whole or not at all, with a record of how it was made."""

import json
import math
import os
import platform
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from console.errors import first_line
from offline_training.checkpoint import RUN_FILE, save_dtype_of
from offline_training.errors import JobError
from offline_training.preparation import Prepared, processes, rank
from offline_training.trainer import TrainedRun, UnlearningTrainer
from storage.whole import whole_folder

_TENSORBOARD = "runs"  # as transformers names it


@dataclass(frozen=True)
class JobResult:
    """What a job left, as `run.json` has it."""

    out: Path
    run: TrainedRun
    evaluation: Mapping[str, Mapping[str, float]]
    """`before` and `after`: answer probabilities of forget and retain set, as far as they were measured."""


def read_evaluations(log: Path) -> dict[str, dict[str, float]]:
    """`before` and `after` of a job's log; empty where nothing was measured."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    measured = [
        {name: value for name, value in line.items() if name.endswith("_answer_probability")}
        for line in lines
        if any(name.endswith("_answer_probability") for name in line)
    ]
    return {"before": measured[0], "after": measured[-1]} if measured else {}


def write_result(prepared: Prepared, trainer: UnlearningTrainer, log: Path, result: JobResult) -> None:
    """The checkpoint, its record and its log take their name together. All processes call it; the first writes.

    Raises:
        JobError: the disk refuses.
    """
    training = prepared.job.training
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # by our flags or by the launcher's
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    trainer.accelerator.wait_for_everyone()
    if rank() != 0:
        trainer.accelerator.wait_for_everyone()
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if training.lora_rank:
        model = model.merge_and_unload()
    dtype = save_dtype_of(training, prepared.base)
    model.config.use_cache = True
    try:
        with whole_folder(prepared.job.out) as folder:
            if state is None:
                model.to(dtype).save_pretrained(folder)
            else:
                model.save_pretrained(folder, state_dict={name: value.to(dtype) for name, value in state.items()})
            prepared.base.tokenizer.save_pretrained(folder)
            record = json.dumps(_record(prepared, result), indent=2, ensure_ascii=False)
            (folder / RUN_FILE).write_text(record + "\n", encoding="utf-8")
            shutil.copy(log, folder / log.name)
            board = Path(str(trainer.args.output_dir)) / _TENSORBOARD
            if board.is_dir():
                shutil.copytree(board, folder / "tensorboard")
    except (OSError, SafetensorError) as error:
        raise JobError(f"--out: {prepared.job.out} cannot be written ({first_line(error)}); pass --resume") from error
    trainer.accelerator.wait_for_everyone()


def _record(prepared: Prepared, result: JobResult) -> dict[str, Any]:
    job, run = prepared.job, result.run
    memory_mib = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
    if torch.cuda.is_available():
        memory_mib["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return {
        "schema": 1,
        "method": prepared.method.name,
        "source": prepared.method.source,
        "method_settings": prepared.method_settings.model_dump(mode="json"),
        "training": job.training.model_dump(mode="json"),
        "precision": prepared.precision,
        "model": {"name": job.model, "sha256": prepared.base.digest, "from_scratch": prepared.from_scratch},
        "data": {
            stream: {"source": data.source, "examples": len(data.examples), "cut": data.cut, "sha256": data.digest}
            for stream, data in sorted(prepared.sets.by_stream.items())
        },
        "steps": run.steps,
        "planned_steps": len(prepared.plan.steps),
        "stopped": run.stopped,
        "evaluation": result.evaluation,
        "seconds": round(run.seconds, 3),
        "tokens": run.tokens,
        "tokens_per_second": round(run.tokens / max(run.seconds, 1e-9), 1),
        "peak_memory_mib": memory_mib,
        "identity": prepared.identity,
        "versions": {name: version(name) for name in ("eco-gateway", "torch", "transformers", "accelerate", "peft")},
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "processes": processes(),
        },
    }


def show_result(result: JobResult, console: Console) -> None:
    """Tell a person how it ended."""
    if result.run.stopped:
        console.print(f"stopped after {result.run.steps} steps: {result.run.stopped}", highlight=False, soft_wrap=True)
    if result.evaluation:
        table = Table("answer probability", "before", "after")
        for name in result.evaluation["before"]:
            before, after = (result.evaluation[when].get(name, math.nan) for when in ("before", "after"))
            table.add_row(name.removesuffix("_answer_probability"), f"{before:.4f}", f"{after:.4f}")
        console.print(table)
    console.print(f"wrote {result.out}", highlight=False, soft_wrap=True)

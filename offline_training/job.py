"""Jobs: prepare, train, and leave a checkpoint.

What is not finished lies in `OUT.training` beside the result: checkpoints, the log, the frozen reference's outputs.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments

from console.progress import shown_progress
from console.quiet import quiet_transformers
from offline_training.checkpoint import RUN_FILE, load_model
from offline_training.data.packing import pack
from offline_training.errors import JobError, SettingsError, TrainingStoppedError
from offline_training.forward import AnswerForward, check_packing
from offline_training.preparation import Prepared, prepare_finetuning, prepare_unlearning, rank
from offline_training.reference.cache import ReferenceCache, ReferenceSettings
from offline_training.result import JobResult, read_evaluations, show_result, write_result
from offline_training.settings import FinetuneJob, UnlearnJob
from offline_training.trainer import STOPPED_FILE, TrainedRun, UnlearningTrainer, training_arguments
from storage.checkpoints import newest_checkpoint
from storage.whole import whole_folder

_LOG_FILE, _STATE_FILE = "log.jsonl", "job.json"
_CHECKPOINTS, _REFERENCE = "checkpoints", "reference"
_REFERENCE_BATCH_TOKENS = 8192
_UNLIMITED = 2**62


def run_unlearning(job: UnlearnJob, *, console: Console | None = None) -> JobResult:
    """Unlearn by one of `METHODS` and write the new checkpoint to `job.out`.

    Raises:
        JobError: bad input, found before any weights are loaded wherever it can be; or the training stopped.
    """
    return run_prepared(prepare_unlearning(job), console)


def run_finetuning(job: FinetuneJob, *, console: Console | None = None) -> JobResult:
    """Fine-tune a model on what it is to know (or train one from scratch) and write the checkpoint to `job.out`.

    Raises:
        JobError: as `run_unlearning`.
    """
    return run_prepared(prepare_finetuning(job), console)


def run_prepared(prepared: Prepared, console: Console | None) -> JobResult:
    """Train what is prepared and write the checkpoint to `prepared.job.out`; raises as `run_unlearning`."""
    job = prepared.job
    console = console or Console(stderr=True) if rank() == 0 else Console(quiet=True)
    if job.training.threads is not None:
        torch.set_num_threads(job.training.threads)
    for examples in prepared.sets.by_stream.values():
        for note in examples.notes:
            console.print(note, highlight=False, soft_wrap=True)
    work = job.out.with_name(f"{job.out.name}.training")
    if job.resume and job.out.exists():
        record = json.loads((job.out / RUN_FILE).read_text(encoding="utf-8"))
        if record.get("identity") == prepared.identity:  # schedulers start finished jobs again
            run = TrainedRun(record["steps"], record["stopped"], record["seconds"], record["tokens"])
            console.print(f"{job.out} is finished", highlight=False, soft_wrap=True)
            if rank() == 0:
                shutil.rmtree(work, ignore_errors=True)
            return JobResult(job.out, run, record["evaluation"])
        if not job.force:
            raise JobError(
                f"--out: {job.out} holds another job's checkpoint; choose another folder or pass --force to replace it"
            )
    arguments = training_arguments(prepared, work / _CHECKPOINTS)
    if rank() == 0:
        _open_work(prepared, work)
    try:
        with quiet_transformers():
            return _train(prepared, arguments, work, console)
    except BaseException:
        if (work / _CHECKPOINTS).exists() or (work / _REFERENCE).exists():
            console.print(f"what was done so far is in {work}; pass --resume to go on", highlight=False, soft_wrap=True)
        elif rank() == 0:
            shutil.rmtree(work, ignore_errors=True)  # nothing was done yet
        raise


def _open_work(prepared: Prepared, work: Path) -> None:
    """Make the folder of what is not finished, or check that `resume` finds its own."""
    job = prepared.job
    state = {"identity": prepared.identity}
    known = work / _STATE_FILE
    if work.exists() and not known.is_file():
        raise JobError(f"--out: {work} exists and is of no training; move it away")
    if work.exists() and job.resume:
        if json.loads(known.read_text(encoding="utf-8")) != state:
            raise JobError(f"--resume: {work} is of a run with other settings, data or model; --force starts over")
        return
    if work.exists() and not job.force:
        raise JobError(f"--out: {work} holds an interrupted run; pass --resume to go on, or --force to start over")
    try:
        with whole_folder(work) as folder:
            (folder / _STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    except OSError as error:
        raise JobError(f"--out: {work} cannot be written ({error.strerror})") from error


def _train(prepared: Prepared, arguments: TrainingArguments, work: Path, console: Console) -> JobResult:
    training = prepared.job.training
    model: Any = load_model(prepared.base, prepared.precision, from_scratch=prepared.from_scratch, seed=training.seed)
    model.config.use_cache = False
    if (pattern := prepared.method.trained_parameters(prepared.method_settings)) is not None:
        names = [name for name, _ in model.named_parameters()]
        chosen = {name for name in names if re.fullmatch(pattern, name)}
        if not chosen:
            raise SettingsError(
                f"--trained-parameters: {pattern!r} is the whole name of none of the model's; they are like {names[-1]}"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    model.to(arguments.device)
    forward = AnswerForward(model, prepared.hidden_layer)
    packed = training.packing
    if packed:
        first = prepared.sets.examples(prepared.plan.steps[0])
        few = pack({stream: examples[:4] for stream, examples in first.items()}, row_tokens=training.row_tokens)
        packed = check_packing(model, few.to(arguments.device))
        if not packed:
            console.print(
                "this model does not keep sequences of one row apart: every sequence gets a padded row of its own"
            )
    with arguments.main_process_first(local=False, desc="frozen reference"):
        references = _references(prepared, work / _REFERENCE, forward, model, packed=packed, console=console)
    if training.lora_rank:
        forward.close()
        from peft import LoraConfig, get_peft_model

        targets = training.lora_targets
        config = LoraConfig(
            r=training.lora_rank,
            lora_alpha=training.lora_alpha,
            lora_dropout=training.lora_dropout,
            target_modules=targets if targets == "all-linear" else targets.split(","),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(training.seed)
        try:
            model = get_peft_model(model, config)
        except ValueError as error:
            raise SettingsError(f"--lora-targets: {targets!r} fits no module of this model") from error
        forward = AnswerForward(model, prepared.hidden_layer)
    log = work / _LOG_FILE
    with shown_progress(console) as show:
        trainer = UnlearningTrainer(
            model, arguments, prepared, forward=forward, packed=packed, references=references, log=log, show=show
        )
        run = _trained(trainer, work / _CHECKPOINTS)
    forward.close()
    result = JobResult(prepared.job.out, run, read_evaluations(log) if rank() == 0 else {})
    write_result(prepared, trainer, log, result)
    if rank() == 0:
        shutil.rmtree(work, ignore_errors=True)
    show_result(result, console)
    return result


def _references(
    prepared: Prepared, folder: Path, forward: AnswerForward, model: Any, *, packed: bool, console: Console
) -> ReferenceCache | None:
    """Outputs of the model as it is now, for the sets that the method compares with it; from disk if they are there."""
    used = {stream: prepared.plan.used(stream) for stream in sorted(prepared.references)}
    used = {stream: numbers for stream, numbers in used.items() if numbers}
    if not used:
        return None
    cached = ReferenceCache.open(folder, prepared.identity)
    if cached is not None:
        return cached
    training = prepared.job.training
    settings = ReferenceSettings(
        kind="layer" if forward.hidden_layer is not None else training.reference_cache,
        # auto would fall back to top-k
        budget_bytes=_UNLIMITED if prepared.method.needs_full_reference else int(training.reference_gib * 2**30),
        batch_tokens=_REFERENCE_BATCH_TOKENS,
        row_tokens=training.row_tokens if packed else None,
        top_k=training.reference_top_k,
    )
    # in the precision of the training, or the two would differ before the first step
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(prepared.precision)
    precision = torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None)
    with precision, shown_progress(console) as show:
        return ReferenceCache.build(
            folder,
            forward,
            model,
            {s: prepared.sets.trained_on(s, prepared.sets.by_stream[s].examples) for s in used},
            settings,
            key=prepared.identity,
            only=used,
            on_progress=lambda done, total: show("frozen reference", done, total),
        )


def _trained(trainer: UnlearningTrainer, checkpoints: Path) -> TrainedRun:
    """Train on; a run that a rule had stopped before it was interrupted is not trained any further."""
    checkpoint, stopped = newest_checkpoint(checkpoints), checkpoints / STOPPED_FILE
    if checkpoint is not None and stopped.is_file():
        record = json.loads(stopped.read_text(encoding="utf-8"))
        if checkpoint.endswith(f"-{record['steps']}"):
            trainer._load_from_checkpoint(checkpoint)
            return TrainedRun(record["steps"], record["stopped"], seconds=0.0, tokens=0)
    run = trainer.run(checkpoint)
    model: Any = trainer.model
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise TrainingStoppedError("the last step made weights that are no numbers; lower --learning-rate")
    return run

"""One trainer for all methods: transformers' Trainer, with a method's terms as its loss.

The loss of a step is a mean over all answer tokens (or sequences) of the step, whatever number of micro-batches and
processes share it: the plan knows the counts beforehand, so nothing is exchanged to normalise, and the loss curve
does not depend on how a step is split.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import functional
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from console.errors import first_line
from console.progress import Show
from offline_training.data.answers import Term, Unit
from offline_training.data.packing import pack
from offline_training.data.plan import MicroBatch
from offline_training.data.tokens import Stream, TokenizedExample
from offline_training.errors import SettingsError, TrainingStoppedError
from offline_training.forward import AnswerForward, evaluating
from offline_training.methods.losses import cross_entropy, mean_by_answer
from offline_training.preparation import Prepared
from offline_training.reference.cache import ReferenceCache
from offline_training.sophia import Sophia

STOPPED_FILE = "stopped.json"
"""Among the checkpoints: at which step a rule stopped the run, and why."""

_MOST_STEPS_BETWEEN_CHECKPOINTS = 200
_NOT_SHOWN = {"loss", "epoch", "learning_rate", "grad_norm", "tokens_per_second"}


@dataclass(frozen=True)
class TrainedRun:
    """How training ended. Seconds and tokens are of this process's run, without what an interrupted one did."""

    steps: int
    stopped: str | None
    """Why it ended before its last step; None: it did not."""
    seconds: float
    tokens: int
    """Real tokens in forward and backward passes, over all processes."""


def training_arguments(prepared: Prepared, checkpoints: Path) -> TrainingArguments:
    """A job's settings as transformers' Trainer takes them.

    Raises:
        SettingsError: it refuses them.
    """
    settings, steps = prepared.job.training, len(prepared.plan.steps)
    try:
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            use_cpu=not torch.cuda.is_available(),
            max_steps=steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
            warmup_steps=int(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_gradient_norm,
            per_device_train_batch_size=1,  # one micro-batch of the plan
            gradient_accumulation_steps=settings.gradient_accumulation,
            gradient_checkpointing=settings.gradient_checkpointing,
            bf16=prepared.precision == "bf16",
            fp16=prepared.precision == "fp16",
            save_strategy="steps",
            save_steps=settings.checkpoint_steps or max(1, min(-(-steps // 10), _MOST_STEPS_BETWEEN_CHECKPOINTS)),
            save_total_limit=2,
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="tensorboard" if settings.tensorboard else "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            # what comes after that layer gets no gradient
            ddp_find_unused_parameters=prepared.hidden_layer is not None,
            deepspeed=str(settings.deepspeed) if settings.deepspeed else None,
            fsdp=settings.fsdp or "",
            seed=settings.seed,
            data_seed=settings.seed,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be split by torch's DataParallel
    except (ValueError, ImportError, OSError) as error:
        named = "--fsdp" if settings.fsdp else "--deepspeed" if settings.deepspeed else "settings"
        raise SettingsError(f"{named}: {first_line(error)}") from error
    return arguments


class UnlearningTrainer(Trainer):
    """Runs a plan. Checkpoints and TensorBoard's files go where `arguments` say, one JSON line a step to `log`.

    Args:
        prepared: the job.
        forward: of the model before `arguments` wrapped it.
        packed: several sequences may share a row.
        references: what the frozen model says to the streams that the method compares; None where there are none.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        prepared: Prepared,
        *,
        forward: AnswerForward,
        packed: bool,
        references: ReferenceCache | None,
        log: Path,
        show: Show,
    ) -> None:
        self._job, self._forward, self._references = prepared, forward, references
        self.settings = prepared.job.training
        self._row_tokens = self.settings.row_tokens if packed else None
        self._counted: tuple[int, dict[tuple[str, Unit], int]] = (-1, {})
        self._sums: dict[str, torch.Tensor] = {}
        self._dual = prepared.method.dual(prepared.method_settings)
        self._dual_weight: float | None = None
        self._tokens = self._tokens_at_log = 0
        self._logged_at = time.monotonic()
        self.stopped: str | None = None
        self.evaluated: dict[str, float] = {}
        """To be logged in the line of the step that is just ending: a line of its own would replace that one."""
        plan: Any = prepared.plan
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=plan,
            data_collator=self._collate,
            callbacks=[LogCallback(log, prepared.method.name, show), EvaluationCallback(self)],
        )
        self.remove_callback(PrinterCallback)  # stdout is the caller's

    def run(self, checkpoint: str | None) -> TrainedRun:
        """Train from `checkpoint`, or from the start.

        Raises:
            TrainingStoppedError: the loss is no number, or a checkpoint cannot be written.
        """
        started = time.monotonic()
        self.train(resume_from_checkpoint=checkpoint)
        seconds = time.monotonic() - started
        tokens = torch.tensor(float(self._tokens), device=self.accelerator.device)
        total = int(self.accelerator.reduce(tokens, "sum").item())
        return TrainedRun(self.state.global_step, self.stopped, seconds, total)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as transformers makes it, or Sophia with the same weights decayed."""
        if self.optimizer is None and self.settings.optimizer == "sophia":
            of: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(of))
            groups: list[dict[str, Any]] = [{"params": [], "weight_decay": d} for d in (self.args.weight_decay, 0.0)]
            for name, weight in of.named_parameters():
                if weight.requires_grad:
                    groups[name not in decayed]["params"].append(weight)
            self.optimizer = Sophia(groups, self.args.learning_rate, rho=self.settings.sophia_rho)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:  # noqa: ARG002
        return SequentialSampler(self._job.plan)  # the plan has shuffled already

    def _collate(self, micro_batches: Sequence[MicroBatch]) -> dict[str, Any]:
        (micro_batch,) = micro_batches
        batch = pack(self._job.sets.examples(micro_batch.share), row_tokens=self._row_tokens)
        return {"input_ids": batch.input_ids, "batch": batch, "micro_batch": micro_batch}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the plan knows better
    ) -> Any:
        if return_outputs:
            raise NotImplementedError("evaluations do not go through the loss")
        micro_batch: MicroBatch = inputs["micro_batch"]
        batch = inputs["batch"].to(self.args.device)
        output = self._forward.forward(model, batch)
        references: dict[Stream, Any] = {}
        if self._references is not None:
            numbers = micro_batch.share.numbers
            for stream in self._job.references & set(numbers):
                references[stream] = self._references.take(stream, numbers[stream], self.args.device)
        answers = self._forward.answers(batch, output, references)
        counts = self._counts_of(micro_batch.step)
        total = output.logits.new_zeros(())
        for term in self._job.method.terms(answers, self._job.method_settings):
            value = term.values.sum() / counts[term.stream, term.unit]
            total = total + self._weight_of(term) * value
            if micro_batch.counted:
                self._add(term.name, value)
        if self.settings.stop_forget_loss is not None and "forget" in answers and micro_batch.counted:
            with torch.no_grad():
                forgotten = functional.cross_entropy(
                    answers["forget"].logits, answers["forget"].targets, reduction="sum"
                )
            self._add("forget_cross_entropy", forgotten / counts["forget", "token"])
        self._tokens += batch.tokens
        # Data parallelism averages gradients over processes; these are shares of a sum.
        return total * (self.args.world_size if micro_batch.counted else 0.0)

    def _weight_of(self, term: Term) -> float:
        if self._dual is None or term.name != self._dual.term:
            return term.weight
        if self._dual_weight is None:  # of a resumed run: as its log says
            self._dual_weight = term.weight
            for logged in self.state.log_history:
                self._move_dual(logged, int(logged["step"]))
        return self._dual_weight

    def _move_dual(self, logged: Mapping[str, float], step: int) -> None:
        """Takes what a step logged; `step` counts from 1."""
        dual, weight = self._dual, self._dual_weight
        if dual is None or weight is None or dual.term not in logged:
            return
        if self._job.plan.steps[step - 1].epoch >= dual.warmup_epochs:
            self._dual_weight = dual.moved(weight, logged[dual.term])

    def _counts_of(self, step: int) -> dict[tuple[str, Unit], int]:
        """Units of the whole step by stream (answers, and their targets that are in the loss), counted once for all
        of its micro-batches."""
        if self._counted[0] != step:
            counts: dict[tuple[str, Unit], int] = {}
            for stream, examples in self._job.sets.examples(self._job.plan.steps[step]).items():
                counts[stream, "sequence"] = len(examples)
                counts[stream, "token"] = sum(example.target_count for example in examples)
            self._counted = step, counts
        return self._counted[1]

    def _add(self, name: str, value: torch.Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss's terms and the throughput; stops on a loss that is no number, before anything is saved."""
        if "loss" in logs:
            logs = {**logs, **self._terms_of_step(), **self.evaluated}
            self.evaluated = {}
            if self._dual is not None and self._dual_weight is not None:
                logs[f"{self._dual.term}_weight"] = self._dual_weight
                self._move_dual(logs, self.state.global_step)
            now, tokens = time.monotonic(), self._tokens - self._tokens_at_log
            logs["tokens_per_second"] = round(tokens * self.args.world_size / max(now - self._logged_at, 1e-9), 1)
            self._logged_at, self._tokens_at_log = now, self._tokens
            # under fp16 such a gradient is the scaler's business, which leaves the step out
            torn = "gradient" if math.isnan(logs.get("grad_norm", 0.0)) and not self.args.fp16 else None
            if not math.isfinite(logs["loss"]) or torn:
                raise TrainingStoppedError(
                    f"the {torn or 'loss'} of step {self.state.global_step} is not a number; lower --learning-rate "
                    f"(the last good checkpoint is kept in {self.args.output_dir})"
                )
            ceiling = self.settings.stop_forget_loss
            if ceiling is not None and (reached := logs.get("forget_cross_entropy", 0.0)) >= ceiling:
                self.stop(f"the cross entropy on the forget set reached {reached:.4g} (--stop-forget-loss {ceiling:g})")
        super().log(logs, start_time)

    def stop(self, reason: str) -> None:
        """End training after this step, with a checkpoint. The file says so to a later run that takes it up."""
        self.stopped = reason
        self.control.should_training_stop = True
        self.control.should_save = True
        if self.is_world_process_zero():
            stopped = {"steps": self.state.global_step, "stopped": reason}
            (Path(str(self.args.output_dir)) / STOPPED_FILE).write_text(json.dumps(stopped), encoding="utf-8")

    def _terms_of_step(self) -> dict[str, float]:
        own = {name: value.item() for name, value in self._sums.items()}
        self._sums.clear()
        gathered: list[Any] = [own]
        if self.args.world_size > 1:
            gathered = [None] * self.args.world_size
            torch.distributed.all_gather_object(gathered, own)
        names = sorted({name for one in gathered for name in one})  # a process may have had no example of a stream
        return {name: sum(one.get(name, 0.0) for one in gathered) for name in names}

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            raise TrainingStoppedError(
                f"{self.args.output_dir}: the checkpoint of step {self.state.global_step} cannot be written "
                f"({first_line(error)}); the one before it is kept: free space and pass --resume"
            ) from error

    def evaluate_answers(self) -> dict[str, float]:
        """Mean over evenly spaced examples of forget and retain set of P(answer | prompt)^(1 / answer tokens)
        (TOFU, arXiv 2401.06121, section 2.2.1)."""
        wanted = self.settings.evaluate_examples
        measured: dict[str, float] = {}
        for stream, data in self._job.sets.by_stream.items():
            if wanted and stream in ("forget", "retain"):
                every = -(-len(data.examples) // wanted)
                measured[f"{stream}_answer_probability"] = self._answer_probability(data.examples[::every])
        return measured

    def _answer_probability(self, examples: Sequence[TokenizedExample]) -> float:
        probabilities: list[float] = []
        with evaluating(self.model_wrapped):
            for start in range(0, len(examples), self.settings.batch_size):
                chunk = examples[start : start + self.settings.batch_size]
                batch = pack({"forget": chunk}, row_tokens=self._row_tokens).to(self.args.device)
                with self.compute_loss_context_manager():
                    output = self._forward.forward(self.model_wrapped, batch)
                answers = self._forward.answers(batch, output, {})["forget"]
                losses = cross_entropy(answers.logits, answers.targets)  # (A,)
                probabilities += (-mean_by_answer(losses, answers.sequence, answers.sequences)).exp().tolist()
        return sum(probabilities) / len(probabilities)


class LogCallback(TrainerCallback):
    """One JSON line a step; what an interrupted run wrote past its last checkpoint is taken back."""

    def __init__(self, path: Path, title: str, show: Show) -> None:
        self._path, self._title, self._show = path, title, show

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if state.global_step else ():
            try:
                step = float(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill
            if step <= state.global_step:
                kept.append(f"{line}\n")
        self._path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        try:
            with self._path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        except OSError as error:
            raise TrainingStoppedError(
                f"{self._path}: cannot be written ({error.strerror}); free space and pass --resume"
            ) from error
        if "loss" in logs:
            self._show(self._title, state.global_step, state.max_steps, losses_of(logs))


def losses_of(logs: Mapping[str, float]) -> str:
    """The loss, its terms and the throughput of one step, in a few words."""
    terms = ", ".join(f"{name} {value:.3f}" for name, value in logs.items() if name not in _NOT_SHOWN)
    speed = f", {logs['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in logs else ""
    return f"loss {logs['loss']:.3f}" + (f" ({terms})" if terms else "") + speed


class EvaluationCallback(TrainerCallback):
    """Answer probabilities before the first step, now and then, and after the last; stops where settings say so.

    All processes measure the same, so all come to the same decision.
    """

    def __init__(self, trainer: UnlearningTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step == 0 and (evaluated := self._trainer.evaluate_answers()):
            self._trainer.log(evaluated)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        every = self._trainer.settings.evaluate_steps
        if not every or state.global_step % every:
            return
        evaluated = self._trainer.evaluated = self._trainer.evaluate_answers()
        for stream in ("forget", "retain"):
            floor = getattr(self._trainer.settings, f"stop_{stream}_probability")
            reached = evaluated.get(f"{stream}_answer_probability", 1.0)
            if floor is not None and reached <= floor:
                self._trainer.stop(
                    f"the answer probability on the {stream} set fell to {reached:.4g} "
                    f"(--stop-{stream}-probability {floor:g})"
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if evaluated := self._trainer.evaluate_answers():
            self._trainer.log(evaluated)

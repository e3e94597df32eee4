"""One trainer for all methods: transformers' Trainer, with a method's terms as its loss.

The loss of a step is a mean over all answer tokens (or sequences) of the step, whatever number of micro-batches and
processes share it: the plan knows the counts beforehand, so nothing is exchanged to normalise, and the loss curve
does not depend on how a step is split.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import functional
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from offline_training.callbacks import EvaluationCallback, LogCallback
from offline_training.data.answers import Answers, Unit
from offline_training.data.packing import pack
from offline_training.data.plan import MicroBatch, Plan, Step
from offline_training.data.step_examples import MicroBatches, Sets, unit_counts
from offline_training.data.tokens import Stream, TokenizedExample
from offline_training.errors import TrainingStoppedError
from offline_training.forward import AnswerForward
from offline_training.methods.method import Method, MethodSettings
from offline_training.progress import OnStep
from offline_training.reference.cache import ReferenceCache
from offline_training.settings import TrainingSettings

__all__ = ["STOPPED_FILE", "TrainedRun", "UnlearningTrainer"]

STOPPED_FILE = "stopped.json"
"""Among the checkpoints: at which step a rule stopped the run, and why."""


@dataclass(frozen=True)
class TrainedRun:
    """How training ended. Seconds and tokens are of this process's run, without what an interrupted one did."""

    steps: int
    stopped: str | None
    """Why it ended before its last step; None: it did not."""
    seconds: float
    tokens: int
    """Real tokens in forward and backward passes, over all processes."""


class UnlearningTrainer(Trainer):
    """Runs a plan. Checkpoints and TensorBoard's files go where `arguments` say, one JSON line a step to `log`."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        *,
        method: Method,
        method_settings: MethodSettings,
        settings: TrainingSettings,
        sets: Sets,
        plan: Plan,
        forward: AnswerForward,
        packed: bool,
        references: ReferenceCache | None,
        log: Path,
        on_step: OnStep | None = None,
    ) -> None:
        self._method, self._method_settings = method, method_settings
        self.settings = settings
        self._sets, self._plan, self._forward, self._references = sets, plan, forward, references
        self._row_tokens = settings.row_tokens if packed else None
        self._row_of = {
            stream: {number: row for row, number in enumerate(plan.used(stream))} for stream in method.reference
        }
        self._counted: tuple[int, dict[tuple[str, Unit], int]] = (-1, {})
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens = self._tokens_at_log = 0
        self._logged_at = time.monotonic()
        self.stopped: str | None = None
        self._evaluated: dict[str, float] = {}
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=MicroBatches(plan),
            data_collator=self._collate,
            callbacks=[LogCallback(log, on_step), EvaluationCallback(self)],
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

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:  # noqa: ARG002
        return SequentialSampler(MicroBatches(self._plan))  # the plan has shuffled already

    def _collate(self, micro_batches: Sequence[MicroBatch]) -> dict[str, Any]:
        (micro_batch,) = micro_batches
        streams = self._sets.examples(micro_batch.share)
        batch = pack(streams, row_tokens=self._row_tokens)
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
        answers = self._forward.answers(batch, output, self._reference_outputs(micro_batch.share))
        counts = self._counts_of(micro_batch.step)
        total = output.logits.new_zeros(())
        for term in self._method.terms(answers, self._method_settings):
            value = term.values.sum() / counts[term.stream, term.unit]
            total = total + term.weight * value
            if micro_batch.counted:
                self._add(term.name, value)
        if self.settings.stop_forget_loss is not None and "forget" in answers and micro_batch.counted:
            self._add("forget_cross_entropy", _cross_entropy(answers["forget"]) / counts["forget", "token"])
        self._tokens += batch.tokens
        # Data parallelism averages gradients over processes; these are shares of a sum.
        return total * (self.args.world_size if micro_batch.counted else 0.0)

    def _counts_of(self, step: int) -> dict[tuple[str, Unit], int]:
        """Units of the whole step, counted once for all of its micro-batches."""
        if self._counted[0] != step:
            self._counted = step, unit_counts(self._sets.examples(self._plan.steps[step]))
        return self._counted[1]

    def _reference_outputs(self, share: Step) -> dict[Stream, Any]:
        if self._references is None:
            return {}
        found = {}
        for stream in self._method.reference & set(share.numbers):
            rows = [self._row_of[stream][number] for number in share.numbers[stream]]
            found[stream] = self._references.take(stream, rows, self.args.device)
        return found

    def _add(self, name: str, value: torch.Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss's terms and the throughput; stops on a loss that is no number, before anything is saved."""
        if "loss" in logs:
            logs = {**logs, **self._terms_of_step(), **self._evaluated}
            self._evaluated = {}
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
                f"({str(error).splitlines()[0]}); the one before it is kept: free space and pass --resume"
            ) from error

    def answer_probability(self, examples: Sequence[TokenizedExample]) -> float:
        """Mean over examples of P(answer | prompt)^(1 / answer tokens) (TOFU, arXiv 2401.06121, section 2.2.1)."""
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        probabilities: list[float] = []
        try:
            with torch.no_grad():
                for start in range(0, len(examples), self.settings.batch_size):
                    chunk = list(examples[start : start + self.settings.batch_size])
                    batch = pack({"forget": chunk}, row_tokens=self._row_tokens).to(self.args.device)
                    with self.compute_loss_context_manager():
                        output = self._forward.forward(model, batch)
                    answers = self._forward.answers(batch, output, {})["forget"]
                    probabilities += _answer_probabilities(answers).tolist()
        finally:
            model.train(was_training)
        return sum(probabilities) / len(probabilities)

    def evaluate_answers(self) -> dict[str, float]:
        """Answer probability on evenly spaced examples of forget and retain set."""
        wanted = self.settings.evaluate_examples
        found: dict[str, float] = {}
        for stream in ("forget", "retain"):
            if stream in self._sets.by_stream and wanted:
                examples = self._sets.by_stream[stream].examples
                examples = examples[:: -(-len(examples) // wanted)]
                found[f"{stream}_answer_probability"] = self.answer_probability(examples)
        return found

    def log_with_step(self, found: dict[str, float]) -> None:
        """Has `found` logged in the line of the step that is just ending: a line of its own would replace that one."""
        self._evaluated = found


def _cross_entropy(answers: Answers) -> torch.Tensor:
    """Sum over the answer tokens, in nats."""
    with torch.no_grad():
        return functional.cross_entropy(answers.logits, answers.targets, reduction="sum")


def _answer_probabilities(answers: Answers) -> torch.Tensor:
    """(S,)."""
    losses = functional.cross_entropy(answers.logits, answers.targets, reduction="none")  # (A,)
    zeros = losses.new_zeros(answers.sequences)
    sums = zeros.index_add(0, answers.sequence, losses)
    lengths = zeros.index_add(0, answers.sequence, torch.ones_like(losses))
    return torch.exp(-sums / lengths)

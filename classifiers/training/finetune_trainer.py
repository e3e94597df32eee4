"""Fine-tuning by transformers' Trainer: batches of windows, weighted loss, best checkpoint by errors, resumable.

A text's log odds are those of its most suspicious window, in training as when served. So a long text that must be
forgotten teaches by the window that shows it best, and its harmless windows are not taught as forbidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from classifiers.encoders.settings import Precision
from classifiers.errors import TrainingError
from classifiers.export.sequence import SequenceModel
from console.quiet import quiet_transformers
from storage.checkpoints import newest_checkpoint

Progress = Callable[[int, int, str], None]
"""Steps done, steps in all, and what was last measured."""

_MAX_STEPS_BETWEEN_CHECKPOINTS = 500
_MIN_STEPS_BETWEEN_CHECKPOINTS = 25


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How to train; the defaults are ECO's where ECO states one."""

    seed: int = 0
    learning_rate: float = 2e-5
    epochs: int = 5
    min_steps: int = 400
    """Optimiser steps taken even where `epochs` over few examples are fewer."""
    batch_texts: int = 16
    patience: int = 4
    """Checkpoints without improvement after which training stops."""
    max_false_positive_rate: float = 0.02
    """Bounds the choice of the threshold, on validation texts."""
    precision: Precision = "int8"

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps", "batch_texts", "patience", "learning_rate"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.max_false_positive_rate < 1:
            raise TrainingError(f"max_false_positive_rate is {self.max_false_positive_rate}; it must be in [0, 1)")


@dataclass(frozen=True)
class LabelledText:
    """One text: token ids of its windows, 1 where it must be forgotten, and its weight in the loss."""

    windows: list[list[int]]
    label: float
    weight: float


@dataclass(frozen=True)
class TrainedSteps:
    """How training ended; the model holds the best checkpoint's weights."""

    steps: int
    best_step: int


def train_model(
    loaded: SequenceModel,
    training: Sequence[LabelledText],
    validation: Sequence[LabelledText],
    folder: Path,
    settings: FinetuneSettings,
    *,
    on_progress: Progress | None = None,
) -> TrainedSteps:
    """Train in place, from the newest whole checkpoint in `folder` if there is one.

    Checkpoints are compared on `validation`: fewer errors on texts to forget, then fewer on texts to pass, then
    the lower loss (arXiv 2406.07933 chooses by the first two).

    Raises:
        TrainingError: the loss became no number.
    """
    steps_per_epoch = -(-len(training) // settings.batch_texts)
    steps = max(settings.epochs * steps_per_epoch, settings.min_steps)
    every = min(max(steps_per_epoch, _MIN_STEPS_BETWEEN_CHECKPOINTS), _MAX_STEPS_BETWEEN_CHECKPOINTS, steps)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=steps // 10,
        weight_decay=0.01,
        per_device_train_batch_size=settings.batch_texts,
        per_device_eval_batch_size=settings.batch_texts * 2,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="errors",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        seed=settings.seed,
        data_seed=settings.seed,
    )
    trainer = _WindowTrainer(
        model=loaded.model.train(),
        args=arguments,
        train_dataset=list(training),  # a list has all that is asked of a dataset
        eval_dataset=list(validation),
        data_collator=_Collator(int(getattr(loaded.model.config, "pad_token_id", None) or 0)),
        compute_metrics=_metrics,
        callbacks=[EarlyStoppingCallback(settings.patience), *([_Shown(on_progress)] if on_progress else [])],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is the caller's
    with quiet_transformers():  # its bars would break into those of the caller
        trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    state = trainer.state
    if state.best_metric is None or not np.isfinite(state.best_metric):
        raise TrainingError("the training loss became no number; lower --learning-rate")
    loaded.model.to("cpu").eval()
    return TrainedSteps(state.global_step, int(state.best_global_step or state.global_step))


@dataclass(frozen=True)
class _Collator:
    """B texts with W windows together: ids (W, S) padded on the right, `owners` (W,) says whose each window is."""

    pad_id: int

    def __call__(self, texts: Sequence[LabelledText]) -> dict[str, torch.Tensor]:
        windows = [torch.tensor(ids) for text in texts for ids in text.windows]
        ids = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=self.pad_id)
        lengths = torch.tensor([len(window) for window in windows])
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
            "owners": torch.repeat_interleave(torch.tensor([len(text.windows) for text in texts])),
            "labels": torch.tensor([text.label for text in texts]),
            "weights": torch.tensor([text.weight for text in texts]),
        }


class _WindowTrainer(Trainer):
    """Weighted logistic loss of each text's most suspicious window."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the Trainer passes it
    ) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()  # (W, 2)
        labels = inputs["labels"].float()
        windows = logits[:, 1] - logits[:, 0]
        log_odds = torch.full_like(labels, -torch.inf).scatter_reduce(0, inputs["owners"], windows, "amax")  # (B,)
        losses = functional.binary_cross_entropy_with_logits(log_odds, labels, reduction="none")
        loss = (losses * inputs["weights"]).mean()
        return (loss, {"log_odds": log_odds}) if return_outputs else loss


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`errors` orders checkpoints: errors to forget before errors to pass before the loss, squeezed below 1."""
    log_odds = np.asarray(prediction.predictions, dtype=np.float64)
    forgotten = np.asarray(prediction.label_ids) == 1
    flagged = log_odds >= 0
    missed, false_positives = int((~flagged & forgotten).sum()), int((flagged & ~forgotten).sum())
    losses = np.logaddexp(0, np.where(forgotten, -log_odds, log_odds))
    loss = (losses[forgotten].mean() + losses[~forgotten].mean()) / 2
    order = missed * (int((~forgotten).sum()) + 1) + false_positives + loss / (1 + loss)
    return {"errors": float(order), "missed": missed, "false_positives": false_positives}


class _Shown(TrainerCallback):
    """Passes steps and errors on."""

    def __init__(self, on_progress: Progress) -> None:
        self._on_progress = on_progress
        self._last = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._on_progress(state.global_step, state.max_steps, self._last)

    on_step_end = on_train_begin

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        self._last = f"{metrics['eval_missed']} missed, {metrics['eval_false_positives']} wrongly flagged"
        self._on_progress(state.global_step, state.max_steps, self._last)

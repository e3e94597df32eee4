"""Fine-tune an encoder of the user's choice into a prompt classifier, as ECO does (arXiv 2406.07933, section 3.1 and
appendix): learning rate 2e-5, class weights, best checkpoint by errors on the forget set, then on the retain set.

It learns from the texts that heads learn from. A fifth of the examples, with everything made from them, is set
aside: it chooses the checkpoint and the threshold and is never trained on.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.threshold import Rates, choose_threshold, rates
from classifiers.encoders.finetuned import FinetunedClassifier, FinetunedSettings, probability
from classifiers.encoders.shared import TOKENIZER_FILE
from classifiers.errors import TrainingError
from classifiers.export.sequence import (
    FORGET_LABEL,
    Precision,
    SequenceModel,
    export_finetuned,
    load_sequence_model,
)
from classifiers.prompt_classifier import ENCODER_FOLDER
from classifiers.training.corpus import Corpus
from classifiers.training.finetune_data import FinetuneData, finetune_data
from classifiers.training.importing import folder_digest, source_folder
from sources.examples import Example, check_disjoint
from storage.whole import whole_folder

if TYPE_CHECKING:
    from classifiers.training.finetune_trainer import Progress

__all__ = ["FinetuneReport", "FinetuneSettings", "Finetuned", "finetune"]

_RUN_FILE, _CHECKPOINTS, _BEST = "run.json", "checkpoints", "best"


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
        counts = {"epochs": self.epochs, "min_steps": self.min_steps, "batch_texts": self.batch_texts}
        for name, value in {**counts, "patience": self.patience, "learning_rate": self.learning_rate}.items():
            if not value > 0:
                raise TrainingError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.max_false_positive_rate < 1:
            raise TrainingError(f"max_false_positive_rate is {self.max_false_positive_rate}; it must be in [0, 1)")


@dataclass(frozen=True)
class FinetuneReport:
    """What was trained on, and how well the exported model tells texts apart that it was not trained on."""

    forget_examples: int
    retain_examples: int
    general_prompts: int
    training_texts: int
    validation_texts: int
    steps: int
    best_step: int
    seed: int
    encoder: str
    threshold: float
    validation: Rates
    """Prompts and their variations of the examples set aside. They also chose checkpoint and threshold, so these
    rates are a little better than those of prompts never seen."""
    export: dict[str, Any]
    """Precision and parity of the exported graph."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return asdict(self)


@dataclass(frozen=True)
class Finetuned:
    """`exported` is the folder to serve, `checkpoint` the same model as Hugging Face files; both in the work folder."""

    exported: Path
    checkpoint: Path
    settings: FinetunedSettings
    report: FinetuneReport


def finetune(
    encoder: str,
    forget: Sequence[Example],
    retain: Sequence[Example],
    work: Path,
    settings: FinetuneSettings,
    *,
    negatives: Sequence[str] = (),
    everyday: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    resume: bool = False,
    restart: bool = False,
    on_progress: "Progress | None" = None,
) -> Finetuned:
    """Fine-tune `encoder` (hub id or folder) and export it; everything is written to `work`.

    `negatives`, `everyday` and `aliases` are those of `classifiers.training.corpus.build_corpus`.

    With `resume` an interrupted run in `work` is continued and ends as it would have ended; with `restart` it is
    thrown away. `on_progress(steps done, steps in all, last errors)` is called after each step.

    Raises:
        TrainingError: too few examples, or `work` holds a run with other settings or without either flag.
        ExampleFileError: a prompt is in both sets.
        EncoderError: the encoder is not to be had, has no fast tokenizer, or cannot be exported.
    """
    import torch

    check_disjoint(forget, retain)
    source = source_folder(encoder)
    torch.manual_seed(settings.seed)  # the new classification layer
    loaded = load_sequence_model(source, encoder, labels=2)
    data = finetune_data(forget, retain, settings.seed, negatives=negatives, everyday=everyday, aliases=aliases)
    _open_work(work, _fingerprint(source, data, settings), resume=resume, restart=restart)
    loaded, steps, best_step = _train(loaded, data, work, settings, on_progress)
    exported = export_finetuned(
        loaded, work / ENCODER_FOLDER, label=1, precision=settings.precision, texts=data.parity_texts()
    )
    threshold, found = _choose_threshold(work / ENCODER_FOLDER, data, settings.max_false_positive_rate)
    report = FinetuneReport(
        forget_examples=len(forget),
        retain_examples=len(retain),
        general_prompts=data.training.general + data.validation.general,
        training_texts=len(data.kept),
        validation_texts=len(data.validation.texts),
        steps=steps,
        best_step=best_step,
        seed=settings.seed,
        encoder=encoder,
        threshold=threshold,
        validation=found,
        export=exported.model_dump(include={"precision", "fallback", "parity_windows", "parity_max_difference"}),
    )
    return Finetuned(work / ENCODER_FOLDER, work / _BEST, exported, report)


def _fingerprint(source: Path, data: FinetuneData, settings: FinetuneSettings) -> str:
    """sha256 of everything that decides the result."""
    parts = [folder_digest(source), data.digest(), asdict(settings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open_work(work: Path, fingerprint: str, *, resume: bool, restart: bool) -> None:
    run = work / _RUN_FILE
    if work.exists() and restart and not resume:
        _refuse_foreign(work)
        shutil.rmtree(work)
    if work.exists():
        _refuse_foreign(work)
        if not resume:
            raise TrainingError(f"{work}: an interrupted training; pass --resume to continue it, --force to start over")
        if json.loads(run.read_text(encoding="utf-8")).get("fingerprint") != fingerprint:
            raise TrainingError(
                f"{work}: the interrupted training had other examples, settings or encoder; pass --force to start over"
            )
        return
    try:
        with whole_folder(work) as folder:
            (folder / _RUN_FILE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{work}: cannot be written ({error.strerror})") from error


def _refuse_foreign(work: Path) -> None:
    if not (work / _RUN_FILE).is_file():
        raise TrainingError(f"{work}: exists and is no interrupted training; choose another --out or remove it")


def _train(
    loaded: SequenceModel,
    data: FinetuneData,
    work: Path,
    settings: FinetuneSettings,
    on_progress: "Progress | None",
) -> tuple[SequenceModel, int, int]:
    """The best checkpoint as a model, also kept in `work` (a later resume takes it from there), and its steps."""
    from classifiers.training.finetune_trainer import LabelledText, TrainerSettings, train_model

    best = work / _BEST
    if best.is_dir():
        steps = json.loads((best / _RUN_FILE).read_text(encoding="utf-8"))
        return load_sequence_model(best, loaded.source), steps["steps"], steps["best_step"]
    loaded.model.config.id2label = {0: "retain", 1: FORGET_LABEL}  # for whoever opens the checkpoint later
    loaded.model.config.label2id = {"retain": 0, FORGET_LABEL: 1}
    weights = data.loss_weights()

    def labelled(corpus: Corpus, indices: Sequence[int], weights: NDArray[np.float64]) -> list[LabelledText]:
        return [
            LabelledText(
                loaded.tokenizer.windows(corpus.texts[index]), float(corpus.labels[index]), float(weights[index])
            )
            for index in indices
        ]

    training = labelled(data.training, data.kept.tolist(), weights)
    epochs = settings.epochs * -(-len(training) // settings.batch_texts)
    trained = train_model(
        loaded,
        training,
        labelled(data.validation, range(len(data.validation.texts)), data.validation.weights),
        work / _CHECKPOINTS,
        TrainerSettings(
            learning_rate=settings.learning_rate,
            steps=max(epochs, settings.min_steps),
            batch_texts=settings.batch_texts,
            patience=settings.patience,
            seed=settings.seed,
        ),
        on_progress=on_progress,
    )
    with whole_folder(best) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save(folder / TOKENIZER_FILE)
        (folder / _RUN_FILE).write_text(json.dumps(asdict(trained)) + "\n", encoding="utf-8")
    shutil.rmtree(work / _CHECKPOINTS, ignore_errors=True)
    return loaded, trained.steps, trained.best_step


def _choose_threshold(folder: Path, data: FinetuneData, max_false_positive_rate: float) -> tuple[float, Rates]:
    """The cheapest cut of the validation texts, scored by the exported model as it will be served, and its errors."""
    classifier = FinetunedClassifier.open(folder, threshold=0.5)
    log_odds = classifier.log_odds([data.validation.texts[index] for index in data.judged])
    labels = data.validation.labels[data.judged]
    cut = choose_threshold(log_odds, labels, max_false_positive_rate)
    threshold = float(np.clip(probability(np.array([cut]))[0], 1e-12, 1 - 1e-12))
    return threshold, rates(probability(log_odds) >= threshold, labels)

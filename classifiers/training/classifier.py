"""Examples in, a classifier folder of either kind out; no language model is needed."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.threshold import Calibration, CalibrationSettings, calibrate
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.shared import Encoder
from classifiers.errors import ClassifierError, TrainingError
from classifiers.export.hub import DEFAULT_ENCODER, resolve_encoder
from classifiers.prompt_classifier import ClassifierInfo, ClassifierKind, EncoderInfo, check_out, write_classifier
from classifiers.training.head import DEFAULT_CALIBRATION, train_head
from classifiers.training.holdout import Holdout, hold_out
from classifiers.training.importing import folder_digest, source_folder, versions
from sources.everyday import general_prompts
from sources.examples import Example, check_disjoint, read_examples
from storage.whole import whole_folder

if TYPE_CHECKING:
    from classifiers.training.finetune import Finetuned
    from classifiers.training.finetune_trainer import Progress

__all__ = ["TrainOptions", "train_classifier"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `eco classifier train` takes."""

    forget: Path
    retain: Path
    out: Path
    kind: ClassifierKind = "head"
    encoder: str = DEFAULT_ENCODER
    seed: int = 0
    max_false_positive_rate: float = 0.02
    aliases: tuple[str, ...] = ()
    """Further names of what must be forgotten; for a head's entity memory."""
    calibration: CalibrationSettings | None = None
    """None: conformal on false positives, at 1 %."""
    force: bool = False
    resume: bool = False
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    min_steps: int | None = None
    precision: str | None = None
    keep_checkpoint: Path | None = None

    def finetuning(self) -> dict[str, Any]:
        """The options that only a fine-tuned classifier has, where given."""
        given = {
            "learning_rate": self.learning_rate,
            "epochs": self.epochs,
            "batch_texts": self.batch_size,
            "min_steps": self.min_steps,
            "precision": self.precision,
        }
        return {name: value for name, value in given.items() if value is not None}


def train_classifier(options: TrainOptions, *, on_progress: "Progress | None" = None) -> ClassifierInfo:
    """Train, calibrate and write the folder `options.out`, whole or not at all.

    An interrupted fine-tuning stays in the folder `<out>.training`; `resume` continues it.

    Raises:
        ClassifierError: input that cannot work, found before anything slow starts wherever it can be.
    """
    _check(options)
    forget, retain = read_examples(options.forget), read_examples(options.retain)
    check_disjoint(forget, retain, forget_name=str(options.forget), retain_name=str(options.retain))
    if options.kind == "head":
        return _train_head(options, forget, retain)
    return _finetune(options, forget, retain, on_progress)


def _check(options: TrainOptions) -> None:
    check_out(options.out, overwrite=options.force)
    if not 0 <= options.max_false_positive_rate < 1:
        raise TrainingError(f"--max-false-positive-rate: {options.max_false_positive_rate} is not in [0, 1)")
    if options.kind == "head" and (options.finetuning() or options.keep_checkpoint or options.resume):
        raise TrainingError("--resume, --keep-checkpoint and the fine-tuning options need --kind finetuned")
    kept = options.keep_checkpoint
    if kept is not None and kept.exists():
        raise ClassifierError(f"--keep-checkpoint: {kept} already exists; choose another folder")


def _train_head(options: TrainOptions, forget: list[Example], retain: list[Example]) -> ClassifierInfo:
    encoder = Encoder.open(resolve_encoder(options.encoder))
    head, report = train_head(
        encoder,
        forget,
        retain,
        seed=options.seed,
        aliases=options.aliases,
        max_false_positive_rate=options.max_false_positive_rate,
        calibration=options.calibration or DEFAULT_CALIBRATION,
    )
    info = ClassifierInfo(
        kind="head",
        encoder=EncoderInfo(name=options.encoder, digest=encoder.digest),
        threshold=head.threshold,
        calibration={**report.calibration.as_dict(), "calibration_negatives": report.calibration_negatives},
        report=report.as_dict(),
        provenance=_provenance(options),
    )
    return write_classifier(options.out, info, head, overwrite=options.force)


def _finetune(
    options: TrainOptions, forget: list[Example], retain: list[Example], on_progress: "Progress | None"
) -> ClassifierInfo:
    from classifiers.training.finetune import FinetuneSettings, finetune

    settings = FinetuneSettings(
        seed=options.seed, max_false_positive_rate=options.max_false_positive_rate, **options.finetuning()
    )
    # Of this kind the forget set is held out too, for it can spare examples: a fine-tuned encoder needs many anyway.
    wanted = options.calibration or DEFAULT_CALIBRATION
    rng = np.random.default_rng(options.seed)
    held = hold_out(forget, retain, general_prompts(), wanted, rng, positives=True)
    work = options.out.with_name(f"{options.out.name}.training")
    found = finetune(
        options.encoder,
        held.forget,
        held.retain,
        work,
        settings,
        everyday=held.everyday,
        aliases=options.aliases,
        resume=options.resume,
        restart=options.force,
        on_progress=on_progress,
    )
    calibration, source, assessment = _calibrate(found, held, wanted)
    info = ClassifierInfo(
        kind="finetuned",
        encoder=EncoderInfo(name=options.encoder, digest=found.settings.digest),
        threshold=calibration.threshold,
        calibration={**calibration.as_dict(), "calibration_negatives": source},
        report=found.report.as_dict() | {"assessment": assessment.as_dict()},
        provenance=_provenance(options) | {"source_sha256": folder_digest(source_folder(options.encoder))},
    )
    if options.keep_checkpoint is not None:
        _keep(found.checkpoint, options.keep_checkpoint)
    written = write_classifier(options.out, info, found.exported, overwrite=options.force)
    shutil.rmtree(work, ignore_errors=True)
    return written


def _calibrate(found: "Finetuned", held: Holdout, settings: CalibrationSettings) -> tuple[Calibration, str, Assessment]:
    """The threshold on what was held out of fine-tuning; the validation's own choice is preferred where it is safe."""
    classifier = FinetunedClassifier.open(found.exported, found.report.threshold)
    negatives, source = held.negatives(settings)
    scores = classifier.scores([*held.kept_forget, *negatives])
    labels = np.repeat([1.0, 0.0], [len(held.kept_forget), len(negatives)])
    calibration = calibrate(scores, labels, settings, preferred=found.report.threshold)
    retained = min(len(held.kept_retain), len(negatives))
    groups = ["forget"] * len(held.kept_forget) + ["retain"] * retained + ["everyday"] * (len(negatives) - retained)
    return calibration, source, assess(scores, labels, calibration.threshold, groups)


def _keep(checkpoint: Path, target: Path) -> None:
    try:
        with whole_folder(target) as work:
            shutil.copytree(checkpoint, work, dirs_exist_ok=True)
    except OSError as error:
        raise ClassifierError(f"--keep-checkpoint: {target} cannot be written ({error.strerror})") from error


def _provenance(options: TrainOptions) -> dict[str, Any]:
    return {
        "forget_sha256": _sha256(options.forget),
        "retain_sha256": _sha256(options.retain),
        "seed": options.seed,
        "versions": versions(),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

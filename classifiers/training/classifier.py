"""Classifier folders: trained from examples or imported as they are, measured, and given another threshold.

No language model is needed.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.threshold import Calibration, CalibrationError, CalibrationSettings, calibrate
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.shared import Encoder
from classifiers.errors import ClassifierError, EncoderError, TrainingError
from classifiers.export.hub import DEFAULT_ENCODER, MODEL_FILES, resolve_encoder, source_folder
from classifiers.prompt_classifier import (
    ENCODER_FOLDER,
    ClassifierInfo,
    ClassifierKind,
    EncoderInfo,
    PromptClassifier,
    change_threshold,
    check_out,
    flags_answers,
    flags_prompts,
    load_classifier,
    read_classifier_info,
    write_classifier,
)
from classifiers.training.head import DEFAULT_CALIBRATION, train_head
from classifiers.training.holdout import hold_out
from sources.everyday import general_prompts
from sources.examples import Example, check_disjoint, read_examples
from storage.digests import folder_digest, sha256_of_file
from storage.whole import whole_folder

if TYPE_CHECKING:
    from classifiers.encoders.settings import Precision
    from classifiers.export.sequence import SequenceModel
    from classifiers.training.finetune_trainer import Progress


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
    check_out(options.out, overwrite=options.force)
    if not 0 <= options.max_false_positive_rate < 1:
        raise TrainingError(f"--max-false-positive-rate: {options.max_false_positive_rate} is not in [0, 1)")
    kept = options.keep_checkpoint
    if options.kind == "head" and (options.finetuning() or kept or options.resume):
        raise TrainingError("--resume, --keep-checkpoint and the fine-tuning options need --kind finetuned")
    if kept is not None and kept.exists():
        raise ClassifierError(f"--keep-checkpoint: {kept} already exists; choose another folder")
    forget, retain = read_examples(options.forget), read_examples(options.retain)
    check_disjoint(forget, retain, forget_name=str(options.forget), retain_name=str(options.retain))
    provenance = {
        "forget_sha256": sha256_of_file(options.forget),
        "retain_sha256": sha256_of_file(options.retain),
        "seed": options.seed,
        "versions": _versions(),
    }
    if options.kind == "finetuned":
        return _finetune(options, forget, retain, provenance, on_progress)
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
        calibration={**asdict(report.calibration), "calibration_negatives": report.calibration_negatives},
        report=report.as_dict(),
        provenance=provenance,
    )
    return write_classifier(options.out, info, head, overwrite=options.force)


def _finetune(
    options: TrainOptions,
    forget: list[Example],
    retain: list[Example],
    provenance: dict[str, Any],
    on_progress: "Progress | None",
) -> ClassifierInfo:
    """The threshold is found on what is held out; the validation's own choice is preferred where it is safe."""
    from classifiers.training.finetune import finetune
    from classifiers.training.finetune_trainer import FinetuneSettings

    settings = FinetuneSettings(
        seed=options.seed, max_false_positive_rate=options.max_false_positive_rate, **options.finetuning()
    )
    # Of this kind the forget set is held out too, for it can spare examples: a fine-tuned encoder needs many anyway.
    wanted = options.calibration or DEFAULT_CALIBRATION
    rng = np.random.default_rng(options.seed)
    held = hold_out(forget, retain, general_prompts(), wanted, rng, positives=True)
    work = options.out.with_name(f"{options.out.name}.training")
    finetuned = finetune(
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
    report = finetuned.report
    negatives, negatives_from = held.negatives(wanted)
    classifier = FinetunedClassifier.open(finetuned.exported, report.threshold)
    scores = classifier.scores([*held.kept_forget, *negatives])
    positives, others = np.split(scores, [len(held.kept_forget)])
    calibration, assessment = held.calibrate(positives, others, wanted, preferred=report.threshold)
    info = ClassifierInfo(
        kind="finetuned",
        encoder=EncoderInfo(name=options.encoder, digest=finetuned.settings.digest),
        threshold=calibration.threshold,
        calibration={**asdict(calibration), "calibration_negatives": negatives_from},
        report=asdict(report) | {"assessment": asdict(assessment)},
        provenance=provenance | {"source_sha256": folder_digest(source_folder(options.encoder), MODEL_FILES)},
    )
    if options.keep_checkpoint is not None:
        try:
            with whole_folder(options.keep_checkpoint) as folder:
                shutil.copytree(finetuned.checkpoint, folder, dirs_exist_ok=True)
        except OSError as error:
            reason = f"{options.keep_checkpoint} cannot be written ({error.strerror})"
            raise ClassifierError(f"--keep-checkpoint: {reason}") from error
    written = write_classifier(options.out, info, finetuned.exported, overwrite=options.force)
    shutil.rmtree(work, ignore_errors=True)
    return written


def _versions() -> dict[str, str]:
    """Of what a classifier was made with."""
    from importlib.metadata import version

    return {name: version(name) for name in ("eco-gateway", "torch", "transformers", "onnxruntime")}


def load_for_export(name: str, forget_label: str | None) -> "tuple[SequenceModel, int]":
    """A trained sequence classifier and the index of its class to forget.

    Raises:
        EncoderError: nothing of that name, no such class, or the files lack the classification layer.
    """
    from classifiers.export.sequence import load_sequence_model, resolve_label

    loaded = load_sequence_model(source_folder(name), name)
    if loaded.untrained:
        raise EncoderError(
            f"{name}: not a trained classifier (no weights for {', '.join(loaded.untrained[:3])}); "
            "fine-tune it with eco classifier train --kind finetuned"
        )
    return loaded, resolve_label(loaded.model.config, forget_label, name)


def import_classifier(
    name: str,
    out: Path,
    *,
    forget_label: str,
    threshold: float,
    precision: "Precision" = "int8",
    overwrite: bool = False,
) -> ClassifierInfo:
    """Export the sequence classifier `name`, a hub id or a folder of Hugging Face files, as a classifier folder.

    Args:
        forget_label: index or name of the class whose probability is the score.
        threshold: prompts are flagged at or above this probability.

    Raises:
        ClassifierError: `out` must not be written, the threshold is not in (0, 1), or as `load_for_export` and
            `export_finetuned`.
    """
    from classifiers.export.sequence import export_finetuned

    check_out(out, overwrite=overwrite)
    if not 0 < threshold < 1:
        raise ClassifierError(f"--threshold: {threshold} is not a probability between 0 and 1")
    loaded, label = load_for_export(name, forget_label)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / ENCODER_FOLDER
        settings = export_finetuned(loaded, exported, label=label, precision=precision)
        info = ClassifierInfo(
            kind="finetuned",
            encoder=EncoderInfo(name=name, digest=settings.digest),
            threshold=threshold,
            calibration={"method": "given", "threshold": threshold},
            report={"export": settings.model_dump(exclude={"digest", "probe_text", "probe_log_odds"})},
            provenance={
                "imported_from": name,
                "source_sha256": folder_digest(source_folder(name), MODEL_FILES),
                "versions": _versions(),
            },
        )
        return write_classifier(out, info, exported, overwrite=overwrite)


@dataclass(frozen=True)
class PairVerdicts:
    """Pairs of a prompt and its answer, by what is flagged of them: a gateway stops either."""

    pairs: int
    flagged_prompt: int
    flagged_answer: int
    flagged: int
    """Prompt or answer."""


def judge_pairs(classifier: PromptClassifier, examples: Sequence[Example]) -> PairVerdicts | None:
    """Verdicts on the examples that have an answer; None where none has.

    Raises:
        ClassifierError: the encoder fails.
    """
    pairs = [(example.prompt, example.answer) for example in examples if example.answer]
    if not pairs:
        return None
    prompts, answers = map(list, zip(*pairs, strict=True))
    asked = flags_prompts(classifier, prompts)
    told = flags_answers(classifier, prompts, answers)
    return PairVerdicts(len(pairs), int(asked.sum()), int(told.sum()), int((asked | told).sum()))


def evaluate_pairs(path: Path, forget: Path, retain: Path) -> dict[str, PairVerdicts]:
    """Verdicts on prompts and answers of the files that have answers, by `forget` and `retain`.

    Raises:
        ClassifierError: as `evaluate_classifier`.
    """
    classifier = load_classifier(path)
    found = {
        name: judge_pairs(classifier, read_examples(file)) for name, file in (("forget", forget), ("retain", retain))
    }
    return {name: verdicts for name, verdicts in found.items() if verdicts is not None}


def evaluate_classifier(path: Path, forget: Path, retain: Path) -> Assessment:
    """Score the prompts of both files at the folder's threshold; groups are the files' names.

    Raises:
        ClassifierError: the folder or a file cannot be read, or a prompt is in both files.
    """
    scores, labels = _scores(path, forget, retain)
    groups = [forget.stem if label else retain.stem for label in labels]
    return assess(scores, labels, read_classifier_info(path).threshold, groups)


def calibrate_classifier(path: Path, forget: Path, retain: Path, settings: CalibrationSettings) -> Calibration:
    """Give the folder the threshold that `settings` asks for on these prompts, the present one being preferred.

    Raises:
        CalibrationError: the files are those it was trained on, or too small for the level, or no useful threshold
            holds it.
        ClassifierError: as `evaluate_classifier`, or the folder cannot be written.
    """
    info = read_classifier_info(path)
    calibrated_on = {}
    for name, file in (("forget", forget), ("retain", retain)):
        try:
            digest = calibrated_on[f"{name}_sha256"] = sha256_of_file(file)
        except OSError as error:
            raise CalibrationError(f"{file}: cannot be read ({error.strerror})") from error
        if digest in (info.provenance.get("forget_sha256"), info.provenance.get("retain_sha256")):
            raise CalibrationError(
                f"--{name}: {file} is what the classifier was trained on; calibrate on other prompts"
            )
    settings.check_size(positives=len(read_examples(forget)), negatives=len(read_examples(retain)))
    scores, labels = _scores(path, forget, retain)
    calibration = calibrate(scores, labels, settings, preferred=info.threshold)
    change_threshold(path, calibration.threshold, asdict(calibration) | {"calibrated_on": calibrated_on})
    return calibration


def _scores(path: Path, forget: Path, retain: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) probabilities and (N,) labels of the prompts of both files, those to forget first."""
    positives, negatives = read_examples(forget), read_examples(retain)
    check_disjoint(positives, negatives, forget_name=str(forget), retain_name=str(retain))
    scores = load_classifier(path).scores([example.prompt for example in (*positives, *negatives)])
    return scores, np.repeat([1.0, 0.0], [len(positives), len(negatives)])

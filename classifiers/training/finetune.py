"""Fine-tune an encoder of the user's choice into a prompt classifier, as ECO does (arXiv 2406.07933, section 3.1 and
appendix): learning rate 2e-5, class weights, best checkpoint by errors on the forget set, then on the retain set.

It learns from the texts that heads learn from. A fifth of the examples, with everything made from them, is set
aside: it chooses the checkpoint and the threshold and is never trained on.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classifiers.calibration.threshold import Rates, choose_threshold, rates
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.runtime import probability
from classifiers.encoders.settings import TOKENIZER_FILE, FinetunedSettings
from classifiers.errors import TrainingError
from classifiers.export.hub import MODEL_FILES, source_folder
from classifiers.export.sequence import FORGET_LABEL, SequenceModel, export_finetuned, load_sequence_model
from classifiers.prompt_classifier import ENCODER_FOLDER
from classifiers.training.corpus import Corpus, build_corpus
from classifiers.training.finetune_trainer import FinetuneSettings, LabelledText, Progress, train_model
from console.quiet import quiet_transformers
from sources.everyday import general_prompts
from sources.examples import Example, check_disjoint, comparison_key
from storage.digests import folder_digest, sha256_of_json
from storage.whole import whole_folder

_RUN_FILE, _CHECKPOINTS, _BEST = "run.json", "checkpoints", "best"
_SHARE = 5  # every fifth fact is set aside
_PARITY_TEXTS = 32  # of either class


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


@dataclass(frozen=True)
class Finetuned:
    """`exported` is the folder to serve, `checkpoint` the same model as Hugging Face files; both in the work folder."""

    exported: Path
    checkpoint: Path
    settings: FinetunedSettings
    report: FinetuneReport


@dataclass(frozen=True)
class FinetuneData:
    """The texts that heads learn from (`training.corpus`), made apart from training and from validation examples."""

    training: Corpus
    validation: Corpus
    kept: NDArray[np.int64]
    """Indices of the training texts that are no validation text as well: two examples may make the same text."""

    @property
    def judged(self) -> NDArray[np.int64]:
        """Indices of validation texts as people send them; the others only teach."""
        return np.flatnonzero(np.isin(self.validation.kinds, ("prompt", "variation")))

    def loss_weights(self) -> NDArray[np.float64]:
        """(T,) over the training texts, of mean 1 over `kept`, where both classes weigh the same in all."""
        weights, kept = self.training.weights.copy(), np.zeros(len(self.training.texts), dtype=bool)
        kept[self.kept] = True
        for label in (0.0, 1.0):
            own = self.training.labels == label
            weights[own] /= 2 * weights[own & kept].sum()
        return weights * len(self.kept)

    def parity_texts(self) -> list[str]:
        """Some validation texts of both classes, for the exporter's parity check."""
        sides = [np.flatnonzero(self.validation.labels == label) for label in (1.0, 0.0)]
        return [self.validation.texts[index] for side in sides for index in side[:_PARITY_TEXTS]]

    def digest(self) -> str:
        """sha256 (hex) of texts, labels and weights."""
        parts = [[one.texts, one.labels.tolist(), one.weights.tolist()] for one in (self.training, self.validation)]
        return sha256_of_json(parts)


def finetune_data(
    forget: Sequence[Example],
    retain: Sequence[Example],
    seed: int,
    *,
    everyday: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
) -> FinetuneData:
    """Set a fifth of the facts and of the everyday prompts aside and build both corpora; see `build_corpus`.

    Examples with one answer are one fact and stay together. Facts to retain are set aside as one block, for files
    list them entity by entity: most of what will be asked is about entities never seen in training.

    Raises:
        TrainingError: fewer than two facts in a set.
    """
    rng = np.random.default_rng(seed)
    forget_facts, retain_facts = _facts(forget), _facts(retain)
    numbers = max(forget_facts) + 1, max(retain_facts) + 1
    if min(numbers) < 2:
        raise TrainingError(
            f"fine-tuning sets facts aside to choose the checkpoint: it needs at least 2 with different answers in "
            f"either set, there are {numbers[0]} to forget and {numbers[1]} to retain; give more, or use --kind head"
        )
    aside_forget, aside_retain = (max(1, facts // _SHARE) for facts in numbers)
    start = int(rng.integers(numbers[1] - aside_retain + 1))
    chosen = set(rng.permutation(numbers[0])[:aside_forget].tolist())
    block = range(start, start + aside_retain)
    prompts = general_prompts() if everyday is None else everyday
    order = rng.permutation(len(prompts)).tolist()

    def corpus(*, aside: bool) -> Corpus:
        split = len(prompts) // _SHARE
        return build_corpus(
            [example for example, fact in zip(forget, forget_facts, strict=True) if (fact in chosen) == aside],
            [example for example, fact in zip(retain, retain_facts, strict=True) if (fact in block) == aside],
            (),
            rng,
            everyday=[prompts[index] for index in (order[:split] if aside else order[split:])],
            aliases=aliases,
        )

    training, validation = corpus(aside=False), corpus(aside=True)
    known = {comparison_key(text) for text in validation.texts}
    kept = [index for index, text in enumerate(training.texts) if comparison_key(text) not in known]
    return FinetuneData(training, validation, np.array(kept))


def _facts(examples: Sequence[Example]) -> list[int]:
    """For each example the number of its fact, from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(comparison_key(one.answer or one.prompt), len(numbers)) for one in examples]


def finetune(
    encoder: str,
    forget: Sequence[Example],
    retain: Sequence[Example],
    work: Path,
    settings: FinetuneSettings,
    *,
    everyday: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    resume: bool = False,
    restart: bool = False,
    on_progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune `encoder` (hub id or folder) and export it; everything is written to `work`.

    `everyday` and `aliases` are those of `classifiers.training.corpus.build_corpus`.

    With `resume` an interrupted run in `work` is continued and ends as it would have ended; with `restart` it is
    thrown away. `on_progress(steps done, steps in all, last errors)` is called after each step.

    Raises:
        TrainingError: too few examples, or `work` holds a run with other settings or without either flag.
        ExampleFileError: a prompt is in both sets.
        EncoderError: the encoder is not to be had, has no fast tokenizer, or cannot be exported.
    """
    check_disjoint(forget, retain)
    source = source_folder(encoder)
    torch.manual_seed(settings.seed)  # the new classification layer
    loaded = load_sequence_model(source, encoder, labels=2)
    data = finetune_data(forget, retain, settings.seed, everyday=everyday, aliases=aliases)
    fingerprint = sha256_of_json([folder_digest(source, MODEL_FILES), data.digest(), asdict(settings)])
    _open_work(work, fingerprint, resume=resume, restart=restart)
    loaded, steps, best_step = _train(loaded, data, work, settings, on_progress)
    exported = export_finetuned(
        loaded, work / ENCODER_FOLDER, label=1, precision=settings.precision, texts=data.parity_texts()
    )
    # The cheapest cut of the validation texts, scored by the exported model as it will be served.
    classifier = FinetunedClassifier.open(work / ENCODER_FOLDER, threshold=0.5)
    log_odds = classifier.log_odds([data.validation.texts[index] for index in data.judged])
    labels = data.validation.labels[data.judged]
    cut = choose_threshold(log_odds, labels, settings.max_false_positive_rate)
    threshold = float(np.clip(probability(np.array([cut]))[0], 1e-12, 1 - 1e-12))
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
        validation=rates(probability(log_odds) >= threshold, labels),
        export=exported.model_dump(include={"precision", "fallback", "parity_windows", "parity_max_difference"}),
    )
    return Finetuned(work / ENCODER_FOLDER, work / _BEST, exported, report)


def _open_work(work: Path, fingerprint: str, *, resume: bool, restart: bool) -> None:
    """Make the folder of a run, or take the one of an interrupted run, which must be the same run."""
    if work.exists():
        run = work / _RUN_FILE
        if not run.is_file():
            raise TrainingError(f"{work}: exists and is no interrupted training; choose another --out or remove it")
        if resume:
            if json.loads(run.read_text(encoding="utf-8")).get("fingerprint") != fingerprint:
                raise TrainingError(
                    f"{work}: the interrupted training had other examples, settings or encoder; "
                    "pass --force to start over"
                )
            return
        if not restart:
            raise TrainingError(f"{work}: an interrupted training; pass --resume to continue it, --force to start over")
        shutil.rmtree(work)
    try:
        with whole_folder(work) as folder:
            (folder / _RUN_FILE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{work}: cannot be written ({error.strerror})") from error


def _train(
    loaded: SequenceModel, data: FinetuneData, work: Path, settings: FinetuneSettings, on_progress: Progress | None
) -> tuple[SequenceModel, int, int]:
    """The best checkpoint as a model, also kept in `work` (a later resume takes it from there), and its steps."""
    best = work / _BEST
    if best.is_dir():
        steps = json.loads((best / _RUN_FILE).read_text(encoding="utf-8"))
        return load_sequence_model(best, loaded.source), steps["steps"], steps["best_step"]
    loaded.model.config.id2label = {0: "retain", 1: FORGET_LABEL}  # for whoever opens the checkpoint later
    loaded.model.config.label2id = {"retain": 0, FORGET_LABEL: 1}

    def labelled(corpus: Corpus, indices: Sequence[int], weights: NDArray[np.float64]) -> list[LabelledText]:
        return [
            LabelledText(
                loaded.tokenizer.windows(corpus.texts[index]), float(corpus.labels[index]), float(weights[index])
            )
            for index in indices
        ]

    trained = train_model(
        loaded,
        labelled(data.training, data.kept.tolist(), data.loss_weights()),
        labelled(data.validation, range(len(data.validation.texts)), data.validation.weights),
        work / _CHECKPOINTS,
        settings,
        on_progress=on_progress,
    )
    with whole_folder(best) as folder, quiet_transformers():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save(folder / TOKENIZER_FILE)
        (folder / _RUN_FILE).write_text(json.dumps(asdict(trained)) + "\n", encoding="utf-8")
    shutil.rmtree(work / _CHECKPOINTS, ignore_errors=True)
    return loaded, trained.steps, trained.best_step

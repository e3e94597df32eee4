"""Train a head: which texts must be forgotten, learned from a forget set and a retain set.

Logistic regression over `classifiers.encoders.features`, its lexical block scaled by smoothed log-odds ratios
(naive-Bayes features, Wang & Manning 2012): a word only forgotten examples have counts, a word both sides share
does not. The threshold comes from cross-fitted scores, that is from texts the scoring model was not trained on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.logistic import Design, Float64, fit_logistic
from classifiers.calibration.threshold import (
    Calibration,
    CalibrationSettings,
    Rates,
    calibrate,
    choose_threshold,
    fit_platt,
    rates,
)
from classifiers.encoders.features import LEXICAL_BUCKETS, extract_features, lexical_features
from classifiers.encoders.shared import Encoder
from classifiers.errors import TrainingError
from classifiers.head import Head, HeadBank, HeadSettings
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from classifiers.training.corpus import Corpus, Windows, build_corpus, embed_corpus
from classifiers.training.holdout import Holdout, hold_out
from sources.everyday import general_prompts
from sources.examples import Example, check_disjoint

DEFAULT_CALIBRATION = CalibrationSettings(method="conformal", level=0.01)
"""A new prompt like those of the retain set is flagged with a probability of at most 1 %."""

# Chosen on TOFU (forget10 against retain90 without 20 authors) and on a generated world; results were about the
# same for dense scales 2 to 10, l2 1e-6 to 1e-5 and smoothing 0.1 to 1.
_DENSE_SCALE = 4.0
_MEMORY_SCALE = 40.0  # next to no regularisation: a name is what decides
_L2 = 1e-5
_SMOOTHING = 0.3
_EVEN_ODDS = 0.5  # Platt's scaling weighs the classes alike: both errors cost the same there
# Words that speak against forgetting count less: a question must not pass because harmless text surrounds it.
_BENIGN_SCALE = 0.3


@dataclass(frozen=True)
class TrainingReport:
    """What was trained on, and how well prompts are told apart at `threshold`."""

    forget_examples: int
    retain_examples: int
    """Trained on; those kept for calibration come on top."""
    general_prompts: int
    """Everyday prompts and the caller's negatives."""
    training_windows: int
    seed: int
    encoder_digest: str
    threshold: float
    folds: int
    """Folds of the cross-fitting; 0 where examples are too few: `cross_fitted` is then the training fit."""
    cross_fitted: Rates
    """Prompts and their variations, scored by models trained without that example and its rephrasings."""
    training: Rates
    """The plain prompts of both sets, scored by the final head, which was trained on them."""
    subjects: tuple[str, ...]
    """The names the entity memory found, and the aliases."""
    calibration: Calibration
    calibration_negatives: str
    """What the calibration negatives are."""
    assessment: Assessment
    """The calibration set at the threshold. Its forget prompts are scored by models trained without them."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for a JSON report."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("cross_fitted", "training"):
            plain[name] = asdict(plain[name])
        plain["subjects"] = list(self.subjects)
        return plain | {"calibration": self.calibration.as_dict(), "assessment": self.assessment.as_dict()}


@dataclass(frozen=True)
class _Linear:
    dense: Float64
    lexical: Float64
    bias: float

    def scores(self, design: Design) -> Float64:
        return design.times(self.dense, self.lexical) + self.bias


def train_head(
    encoder: Encoder,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    seed: int,
    negatives: Sequence[str] = (),
    aliases: Sequence[str] = (),
    positive_weight: float = 1.0,
    max_false_positive_rate: float = 0.02,
    calibration: CalibrationSettings = DEFAULT_CALIBRATION,
) -> tuple[Head, TrainingReport]:
    """Train and calibrate a head. The same arguments give a bit-identical head.

    The threshold that is preferred is the cheapest cut of cross-fitted scores, both errors costing the same. Even odds
    are another estimate of the same cut. Where the calibration negatives are prompts of the retain set alone, which
    warn of what is near to the forget set, the lower of the two is preferred: what is missed has leaked, and what is
    flagged in error is bounded. Even odds count only where they too hold `max_false_positive_rate`. The
    threshold that is taken also keeps what `calibration` asks for on prompts that were never trained on.

    `negatives` are further texts that must pass, beside the retain set and the built-in everyday prompts; `aliases`
    further names of what must be forgotten. `positive_weight` is the total weight of the forget texts relative to
    that of all others, whatever their numbers. `max_false_positive_rate` bounds the preferred cut on cross-fitted
    scores.

    Raises:
        TrainingError: a set is empty, or an argument is out of range.
        ExampleFileError: a prompt is in both sets.
        CalibrationError: the sets are too small for what `calibration` asks, or no useful threshold holds it.
    """
    if not forget or not retain:
        raise TrainingError("training needs at least one example to forget and one to retain")
    if not positive_weight > 0 or not 0 <= max_false_positive_rate < 1:
        raise TrainingError("positive_weight must be above 0 and max_false_positive_rate in [0, 1)")
    check_disjoint(forget, retain)
    rng = np.random.default_rng(seed)
    held = hold_out(forget, retain, general_prompts(), calibration, rng)
    corpus = build_corpus(
        held.forget, held.retain, negatives, rng, encoder.vocabulary_ranks(), everyday=held.everyday, aliases=aliases
    )
    windows = embed_corpus(encoder, corpus)
    weights = _row_weights(corpus, windows, positive_weight)
    memory = corpus.memories.build(held.forget)
    final = _fit(_with_memory(windows, memory), corpus.labels[windows.text], weights, memory)
    scores = _cross_fit(windows, corpus, weights, final, held.forget)

    judged = np.isin(corpus.kinds, ("prompt", "variation"))  # what people send; the rest teaches
    # Not below even odds: neighbours of a subject score just there, and the sets have none to warn of it.
    cut = max(choose_threshold(scores[judged], corpus.labels[judged], max_false_positive_rate), 0.0)
    slope, offset = fit_platt(scores[judged], corpus.labels[judged])
    even = _logit(_EVEN_ODDS, slope, offset)
    lower = min(cut, even) if (scores[judged & (corpus.labels == 0)] >= even).mean() <= max_false_positive_rate else cut
    dense, lexical = (slope * final.dense).astype(np.float32), (slope * final.lexical).astype(np.float32)
    settings = HeadSettings(
        encoder_digest=encoder.digest,
        threshold=_probability(slope * cut + offset),
        bias=slope * final.bias + offset,
        seed=seed,
    )
    head = Head(dense[: encoder.dim], lexical, settings, memory, dense[encoder.dim :])
    prompts = corpus.kinds == "prompt"
    unseen = [_probability(slope * score + offset) for score in scores[prompts & (corpus.labels == 1)]]
    lowered = _probability(slope * lower + offset)
    found, source, assessment = _calibrate(encoder, head, held, calibration, unseen, lowered)
    head = replace(head, settings=settings.model_copy(update={"threshold": found.threshold}))
    served = windows.text_scores(HeadBank([head]).scores(windows.features)[:, 0])
    return head, TrainingReport(
        forget_examples=len(held.forget),
        retain_examples=len(held.retain),
        general_prompts=corpus.general,
        training_windows=len(windows.text),
        seed=seed,
        encoder_digest=encoder.digest,
        threshold=head.threshold,
        folds=int(corpus.folds.max()) + 1,
        cross_fitted=rates(scores[judged] >= _logit(head.threshold, slope, offset), corpus.labels[judged]),
        training=rates(served[prompts] >= head.threshold, corpus.labels[prompts]),
        subjects=tuple(" ".join(subject.words) for subject in memory.subjects),
        calibration=found,
        calibration_negatives=source,
        assessment=assessment,
    )


def _calibrate(
    encoder: Encoder, head: Head, held: Holdout, settings: CalibrationSettings, unseen: Sequence[float], lowered: float
) -> tuple[Calibration, str, Assessment]:
    """The threshold on the calibration set, what its negatives are, and how that set is told apart.

    `unseen` are the forget prompts' cross-fitted probabilities, which stand in where no forget example is held out.
    `lowered` is the cut that is preferred where the negatives are the retain set's alone.
    """
    negatives, source = held.negatives(settings)
    positives = score_texts(encoder, head, held.kept_forget) if held.kept_forget else np.array(unseen)
    scores = np.concatenate([positives, score_texts(encoder, head, negatives)])
    labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    retain_alone = len(negatives) == len(held.kept_retain)
    cut = lowered if retain_alone else head.threshold
    found = calibrate(scores, labels, settings, preferred=cut)
    retained = min(len(held.kept_retain), len(negatives))
    groups = ["forget"] * len(positives) + ["retain"] * retained + ["everyday"] * (len(negatives) - retained)
    return found, source, assess(scores, labels, found.threshold, groups)


def score_texts(encoder: Encoder, head: Head, texts: Sequence[str]) -> Float64:
    """(N,): each text's probability as served, that of its most suspicious window."""
    pieces = [encoder.split_windows(text) for text in texts]
    scores = HeadBank([head]).scores(extract_features(encoder, [piece for own in pieces for piece in own]))[:, 0]
    ends = np.cumsum([len(own) for own in pieces])
    return np.array([own.max() for own in np.split(scores, ends[:-1])]) if pieces else np.empty(0)


def _probability(logit: float) -> float:
    return float(np.clip(1 / (1 + np.exp(-logit)), 1e-12, 1 - 1e-12))


def _logit(probability: float, slope: float, offset: float) -> float:
    """The cross-fitted score that Platt's scaling maps to this probability."""
    return float((np.log(probability) - np.log1p(-probability) - offset) / slope)


def _with_memory(windows: Windows, memory: EntityMemory) -> Design:
    """The design with the memory's features as further dense columns: (N, dim + K)."""
    index = MemoryIndex([memory])
    columns = np.zeros((len(windows.features), len(MEMORY_FEATURES)))
    for row, (features, words) in enumerate(zip(windows.features, windows.words, strict=True)):
        if (found := index.features(features.text, words).get(0)) is not None:
            columns[row] = found
    return replace(windows.design, dense=np.hstack([windows.design.dense, columns]))


def _cross_fit(
    windows: Windows,
    corpus: Corpus,
    weights: Float64,
    final: _Linear,
    forget: Sequence[Example],
) -> Float64:
    """(T,): each text's score by a model, memory included, that was made without its fold."""
    scores = np.empty(len(windows.text))
    row_folds, row_labels = corpus.folds[windows.text], corpus.labels[windows.text]
    for fold in np.unique(row_folds):
        out, kept = np.flatnonzero(row_folds == fold), np.flatnonzero(row_folds != fold)
        known = [example for example, own in zip(forget, corpus.forget_folds, strict=True) if own != fold or own < 0]
        memory = corpus.memories.build(known)
        design = _with_memory(windows, memory)
        if fold < 0:  # too few examples to leave any out
            model = final
        else:
            model = _fit(design.rows(kept), row_labels[kept], weights[kept] / weights[kept].sum(), memory)
        scores[out] = model.scores(design.rows(out))
    return windows.text_scores(scores)


def _row_weights(corpus: Corpus, windows: Windows, positive_weight: float) -> Float64:
    """(N,), summing to 1: a text's weight shared by its windows, then the classes brought to their ratio."""
    classes = corpus.labels.astype(np.int64)
    scale = np.array([1.0, positive_weight]) / np.bincount(classes, corpus.weights) / (1 + positive_weight)
    per_window = corpus.weights * scale[classes] / np.bincount(windows.text)
    rows: Float64 = per_window[windows.text]
    return rows


def _fit(design: Design, labels: Float64, weights: Float64, memory: EntityMemory) -> _Linear:
    ratio = _log_odds(design, labels, weights)
    # Names are the memory's to judge: as mere words they would also flag everybody who shares one.
    for subject in memory.subjects:
        for word in subject.words:
            ratio[lexical_features(word)[0]] = 0.0
    scale = np.full(design.dense.shape[1], _DENSE_SCALE)
    scale[-len(MEMORY_FEATURES) :] = _MEMORY_SCALE
    with threadpool_limits(limits=1):  # vectors this short make more threads wait for each other
        dense, lexical, bias = fit_logistic(design.scaled(scale, ratio), labels, weights, _L2)
    return _Linear(dense * scale, lexical * ratio, bias)


def _log_odds(design: Design, labels: Float64, weights: Float64) -> Float64:
    """(LEXICAL_BUCKETS,): |log odds ratio| of a bucket between the classes, damped where it speaks for the retain
    side; 0 for buckets no text fills.

    In units of rows of mean weight within its class, so that the smoothing means the same for both.
    """
    rows = design.row_index
    logs = []
    for label in (1.0, 0.0):
        own = np.where(labels == label, weights, 0.0)
        count = float((own > 0).sum())
        seen = np.bincount(design.columns, (own * (count / own.sum()))[rows], minlength=LEXICAL_BUCKETS)
        logs.append(np.log((seen + _SMOOTHING) / (count + 2 * _SMOOTHING)))
    filled = np.bincount(design.columns, minlength=LEXICAL_BUCKETS) > 0
    ratio = logs[0] - logs[1]
    return np.where(filled, np.maximum(ratio, -_BENIGN_SCALE * ratio), 0.0)

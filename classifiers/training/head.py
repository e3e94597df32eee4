"""Train a head: which texts must be forgotten, learned from a forget set and a retain set.

Logistic regression over `classifiers.encoders.shared`, its lexical block scaled by smoothed log-odds ratios
(naive-Bayes features, Wang & Manning 2012): a word only forgotten examples have counts, a word both sides share
does not. The threshold comes from cross-fitted scores, that is from texts the scoring model was not trained on.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from classifiers.calibration.assessment import Assessment
from classifiers.calibration.joined import JoinedReport, calibrate_joined, told_evidence
from classifiers.calibration.screening import ScreenReport, calibrate_screen, least_evidence
from classifiers.calibration.threshold import (
    Calibration,
    CalibrationSettings,
    Rates,
    choose_threshold,
    fit_platt,
    rates,
)
from classifiers.encoders.shared import Encoder
from classifiers.errors import TrainingError
from classifiers.features import LEXICAL_BUCKETS, lexical_features
from classifiers.head import Head, HeadBank, HeadSettings, score_texts
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import ASKED, MEMORY_FEATURES, MemoryIndex, asks_for_person
from classifiers.training.corpus import Corpus, Windows, build_corpus, embed_corpus
from classifiers.training.holdout import hold_out
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
_LOWERED_SHARE = 0.25  # of the allowed rate of false positives may come from lowering the cut to them
_MAX_STEPS = 300  # of L-BFGS; the fit of a large set has not converged by then
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
    screen: ScreenReport
    """What is decided without the encoder, and what long prompts must show."""
    joined: JoinedReport | None
    """What prompts and answers read as one text must show; None where the retain set has no answers."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for a JSON report."""
        return asdict(self) | {"subjects": list(self.subjects)}


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
    flagged in error is bounded. Even odds count only where they too hold `max_false_positive_rate`, and hardly flag
    more in error than the cut. The threshold that is taken also keeps what `calibration` asks for on prompts that were
    never trained on.

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
    head, unseen, lowered = _learn(encoder, corpus, windows, seed, positive_weight, max_false_positive_rate)
    prompts = corpus.kinds == "prompt"
    negative_texts, source = held.negatives(calibration)
    # Those trained on stand in where no forget example is held out.
    positives = np.flatnonzero(prompts & (corpus.labels == 1))
    positive_texts, positive_scores = [corpus.texts[text] for text in positives.tolist()], unseen.scores[positives]
    if held.kept_forget:
        positive_texts, positive_scores = held.kept_forget, score_texts(encoder, head, held.kept_forget)
    calibrated, assessment = held.calibrate(
        positive_scores,
        score_texts(encoder, head, negative_texts),
        calibration,
        preferred=lowered if len(negative_texts) == len(held.kept_retain) else head.threshold,
    )
    head = replace(head, settings=head.settings.model_copy(update={"threshold": calibrated.threshold}))
    served = windows.text_scores(HeadBank([head]).scores(windows.features)[:, 0])
    promised = calibration.error == "false_positive" and calibration.method != "fixed"
    head, screen = calibrate_screen(
        encoder,
        head,
        windows.features,
        positive_texts,
        positive_scores,
        held.kept_passages,
        evidence=min(
            least_evidence(evidence, scores >= head.threshold, corpus.labels == 1)
            for evidence, scores in ((unseen.evidence, unseen.scores), (unseen.known, served))
        ),
        level=calibration.level if promised else None,
        seed=seed,
    )
    told = told_evidence(unseen.known, (served >= head.threshold) & (corpus.labels == 1))
    head, joined = calibrate_joined(encoder, head, forget, retain, told=told, seed=seed)
    return head, TrainingReport(
        forget_examples=len(held.forget),
        retain_examples=len(held.retain),
        general_prompts=corpus.general,
        training_windows=len(windows.text),
        seed=seed,
        encoder_digest=encoder.digest,
        threshold=head.threshold,
        folds=int(corpus.folds.max()) + 1,
        cross_fitted=rates(unseen.scores[corpus.judged] >= head.threshold, corpus.labels[corpus.judged]),
        training=rates(served[prompts] >= head.threshold, corpus.labels[prompts]),
        subjects=tuple(" ".join(subject.words) for subject in head.memory.subjects),
        calibration=calibrated,
        calibration_negatives=source,
        assessment=assessment,
        screen=screen,
        joined=joined,
    )


@dataclass(frozen=True)
class _Unseen:
    """Each of T texts as models see it that were made without its fold, memory included.

    Attributes:
        scores: (T,) log odds, or probabilities once they are calibrated.
        evidence: (T,) of the memory without its fold (`classifiers.memory.evidence`).
        known: (T,) of the memory of all.
    """

    scores: NDArray[np.float64]
    evidence: NDArray[np.float64]
    known: NDArray[np.float64]


def _learn(
    encoder: Encoder,
    corpus: Corpus,
    windows: Windows,
    seed: int,
    positive_weight: float,
    max_false_positive_rate: float,
) -> tuple[Head, _Unseen, float]:
    """The head at the cheapest cut of cross-fitted scores; the texts with their probabilities; and the cut lowered to
    even odds, where those hold the rate too and hardly flag more in error."""
    memory, weights, bias, fitted = _cross_fit(corpus, windows, positive_weight)
    scores = fitted.scores
    judged = corpus.judged
    # Not below even odds: neighbours of a subject score just there, and the sets have none to warn of it.
    cut = max(choose_threshold(scores[judged], corpus.labels[judged], max_false_positive_rate), 0.0)
    slope, offset = fit_platt(scores[judged], corpus.labels[judged])
    logits = slope * np.append(scores, cut) + offset
    probabilities = np.clip(0.5 * (1 + np.tanh(logits / 2)), 1e-12, 1 - 1e-12)
    unseen, threshold = probabilities[:-1], float(probabilities[-1])
    settings = HeadSettings(encoder_digest=encoder.digest, threshold=threshold, bias=slope * bias + offset, seed=seed)
    blocks = np.split((slope * weights).astype(np.float32), [LEXICAL_BUCKETS, LEXICAL_BUCKETS + encoder.dim])
    head = Head(dense=blocks[1], lexical=blocks[0], settings=settings, memory=memory, recall=blocks[2])
    passing = unseen[judged & (corpus.labels == 0)]
    rate, more = (passing >= _EVEN_ODDS).mean(), ((passing >= _EVEN_ODDS) & (passing < threshold)).mean()
    cheap = rate <= max_false_positive_rate and more <= _LOWERED_SHARE * max_false_positive_rate
    lowered = min(threshold, _EVEN_ODDS) if cheap else threshold
    return head, replace(fitted, scores=unseen), lowered


def _cross_fit(
    corpus: Corpus, windows: Windows, positive_weight: float
) -> tuple[EntityMemory, NDArray[np.float64], float, _Unseen]:
    """Memory, weights (D,) and bias of all texts, and the texts with their log odds."""
    from scipy.sparse import csr_array, hstack  # type: ignore[import-untyped]

    classes = corpus.labels.astype(np.int64)
    # A text's weight shared by its windows, the classes brought to their ratio; 1 in all.
    scale = np.array([1.0, positive_weight]) / np.bincount(classes, corpus.weights) / (1 + positive_weight)
    rows = (corpus.weights * scale[classes] / np.bincount(windows.text))[windows.text]
    labels, folds = corpus.labels[windows.text], corpus.folds[windows.text]
    features = windows.features
    columns = np.concatenate([one.indices for one in features])
    values = np.concatenate([one.values for one in features]).astype(np.float64)
    starts = np.cumsum([0, *(len(one.indices) for one in features)])
    lexical = csr_array((values, columns, starts), shape=(len(features), LEXICAL_BUCKETS))
    dense = csr_array(np.stack([one.embedding for one in features]).astype(np.float64))
    asks = np.array([asks_for_person(one.text) for one in features])

    def with_memory(memory: EntityMemory) -> tuple[Any, NDArray[np.float64]]:
        """The design (N, D): lexical block, embedding, memory features; and each window's evidence (N,)."""
        index = MemoryIndex([memory])
        recalled, shared = index.recall(windows.reading), np.zeros((len(features), len(ASKED)))
        shared[recalled.texts] = recalled.features
        shared[:, ASKED] *= asks[:, None]
        return hstack([lexical, dense, csr_array(shared)], format="csr"), index.evidence(windows.reading)[:, 0]

    memory = corpus.memory()
    design, shown = with_memory(memory)
    known = windows.text_scores(shown)
    weights, bias = _fit(design, labels, rows, memory)
    if folds.max() < 0:  # too few examples to leave any out
        return memory, weights, bias, _Unseen(windows.text_scores(design @ weights + bias), known, known)
    scores, evidence = np.empty(len(features)), np.empty(len(features))
    for fold in np.unique(folds):
        out, kept = folds == fold, folds != fold
        partial = corpus.memory(without_fold=fold)
        design, shown = with_memory(partial)
        fitted, shift = _fit(design[kept], labels[kept], rows[kept] / rows[kept].sum(), partial)
        scores[out] = design[out] @ fitted + shift
        evidence[out] = shown[out]
    # A reverse query asks back from a fact: of one that the memory does not hold it can only be guessed.
    held = np.where(corpus.kinds == "reverse", known, windows.text_scores(evidence))
    return memory, weights, bias, _Unseen(windows.text_scores(scores), held, known)


def _fit(
    design: Any, labels: NDArray[np.float64], weights: NDArray[np.float64], memory: EntityMemory
) -> tuple[NDArray[np.float64], float]:
    """Weights (D,) and bias. A block's scale is how little it is penalised; that of the lexical block is, by bucket,
    the |log odds ratio| between the classes, damped where it speaks for the retain side.

    In units of rows of mean weight within its class, so that the smoothing means the same for both.
    """
    from scipy.sparse import diags_array

    entries = np.diff(design.indptr)
    logs = []
    for label in (1.0, 0.0):
        own = np.where(labels == label, weights, 0.0)
        count = float((own > 0).sum())
        seen = np.bincount(design.indices, np.repeat(own * (count / own.sum()), entries), design.shape[1])
        logs.append(np.log((seen + _SMOOTHING) / (count + 2 * _SMOOTHING)))
    ratio = logs[0] - logs[1]
    scale = np.maximum(ratio, -_BENIGN_SCALE * ratio)
    # Names are the memory's to judge: as mere words they would also flag everybody who shares one.
    for word in (word for subject in memory.subjects for word in subject.words):
        scale[lexical_features(word)[0]] = 0.0
    scale[LEXICAL_BUCKETS:] = _DENSE_SCALE
    scale[-len(MEMORY_FEATURES) :] = _MEMORY_SCALE
    found, bias = fit_logistic(design @ diags_array(scale), labels, weights, _L2)
    return found * scale, bias


def fit_logistic(
    design: Any, labels: NDArray[np.float64], weights: NDArray[np.float64], l2: float
) -> tuple[NDArray[np.float64], float]:
    """Weights w (D,) and bias b that minimise sum_i c_i log(1 + exp(-y_i (x_i . w + b))) + (l2 / 2) |w|^2.

    `design` (N, D) is sparse, `labels` (N,) in {0, 1}, and the texts' weights c (N,) add up to 1.
    """
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    model = LogisticRegression(C=1 / l2, tol=1e-5, max_iter=_MAX_STEPS)
    # Vectors this short make more threads wait for each other.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(design, labels, sample_weight=weights)
    return model.coef_[0], float(model.intercept_[0])

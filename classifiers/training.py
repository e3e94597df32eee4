"""Train a head: which texts must be forgotten, learned from a forget set and a retain set.

Logistic regression over `classifiers.features`, its lexical block scaled by smoothed log-odds ratios
(naive-Bayes features, Wang & Manning 2012): a word only forgotten examples have counts, a word both sides share
does not. The threshold comes from cross-fitted scores, that is from texts the scoring model was not trained on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from classifiers.calibration import Rates, choose_threshold, fit_platt, rates
from classifiers.corpus import Corpus, Windows, build_corpus, embed_corpus
from classifiers.encoder import Encoder
from classifiers.errors import TrainingError
from classifiers.examples import Example, check_disjoint
from classifiers.features import LEXICAL_BUCKETS
from classifiers.head import Head, HeadBank, HeadSettings
from classifiers.logistic import Design, Float64, fit_logistic

# Chosen on TOFU (forget10 against retain90 without 20 authors) and on a generated world; results were about the
# same for dense scales 2 to 10, l2 1e-6 to 1e-5 and smoothing 0.1 to 1.
_DENSE_SCALE = 4.0
_L2 = 1e-5
_SMOOTHING = 0.3
# Words that speak against forgetting count less: a question must not pass because harmless text surrounds it.
_BENIGN_SCALE = 0.3


@dataclass(frozen=True)
class TrainingReport:
    """What was trained on, and how well prompts are told apart at `threshold`."""

    forget_examples: int
    retain_examples: int
    general_prompts: int
    """Built-in everyday prompts and the caller's negatives."""
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

    def as_dict(self) -> dict[str, object]:
        """Plain values for a JSON report."""
        return asdict(self)


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
    positive_weight: float = 1.0,
    max_false_positive_rate: float = 0.01,
) -> tuple[Head, TrainingReport]:
    """Train and calibrate a head. The same arguments give a bit-identical head.

    `negatives` are further texts that must pass, beside the retain set and the built-in everyday prompts.
    `positive_weight` is the total weight of the forget texts relative to that of all others, whatever their
    numbers. `max_false_positive_rate` bounds the threshold's choice on cross-fitted scores.

    Raises:
        TrainingError: a set is empty, or an argument is out of range.
        ExampleFileError: a prompt is in both sets.
    """
    if not forget or not retain:
        raise TrainingError("training needs at least one example to forget and one to retain")
    if not positive_weight > 0 or not 0 <= max_false_positive_rate < 1:
        raise TrainingError("positive_weight must be above 0 and max_false_positive_rate in [0, 1)")
    check_disjoint(forget, retain)
    corpus = build_corpus(forget, retain, negatives, np.random.default_rng(seed))
    windows = embed_corpus(encoder, corpus)
    weights = _row_weights(corpus, windows, positive_weight)
    final = _fit(windows.design, corpus.labels[windows.text], weights)
    scores = _cross_fit(windows, corpus, weights, final)

    judged = corpus.kinds != "fact"  # nobody sends a bare fact; prompts and their variations count
    cut = choose_threshold(scores[judged], corpus.labels[judged], max_false_positive_rate)
    slope, offset = fit_platt(scores[judged], corpus.labels[judged])
    settings = HeadSettings(
        encoder_digest=encoder.digest,
        threshold=float(np.clip(1 / (1 + np.exp(-(slope * cut + offset))), 1e-6, 1 - 1e-6)),
        bias=slope * final.bias + offset,
        seed=seed,
    )
    dense, lexical = (slope * final.dense).astype(np.float32), (slope * final.lexical).astype(np.float32)
    head = Head(dense, lexical, settings)
    served = windows.text_scores(HeadBank([head]).scores(windows.features)[:, 0])
    prompts = corpus.kinds == "prompt"
    return head, TrainingReport(
        forget_examples=len(forget),
        retain_examples=len(retain),
        general_prompts=corpus.general,
        training_windows=len(windows.text),
        seed=seed,
        encoder_digest=encoder.digest,
        threshold=head.threshold,
        folds=int(corpus.folds.max()) + 1,
        cross_fitted=rates(scores[judged] >= cut, corpus.labels[judged]),
        training=rates(served[prompts] >= head.threshold, corpus.labels[prompts]),
    )


def _cross_fit(windows: Windows, corpus: Corpus, weights: Float64, final: _Linear) -> Float64:
    """(T,): each text's score by a model that was trained without its fold."""
    scores = np.empty(len(windows.text))
    row_folds, row_labels = corpus.folds[windows.text], corpus.labels[windows.text]
    for fold in np.unique(row_folds):
        out, kept = np.flatnonzero(row_folds == fold), np.flatnonzero(row_folds != fold)
        if fold < 0:  # too few examples to leave any out
            model = final
        else:
            model = _fit(windows.design.rows(kept), row_labels[kept], weights[kept] / weights[kept].sum())
        scores[out] = model.scores(windows.design.rows(out))
    return windows.text_scores(scores)


def _row_weights(corpus: Corpus, windows: Windows, positive_weight: float) -> Float64:
    """(N,), summing to 1: a text's weight shared by its windows, then the classes brought to their ratio."""
    classes = corpus.labels.astype(np.int64)
    scale = np.array([1.0, positive_weight]) / np.bincount(classes, corpus.weights) / (1 + positive_weight)
    per_window = corpus.weights * scale[classes] / np.bincount(windows.text)
    rows: Float64 = per_window[windows.text]
    return rows


def _fit(design: Design, labels: Float64, weights: Float64) -> _Linear:
    ratio = _log_odds(design, labels, weights)
    dense, lexical, bias = fit_logistic(design.scaled(_DENSE_SCALE, ratio), labels, weights, _L2)
    return _Linear(dense * _DENSE_SCALE, lexical * ratio, bias)


def _log_odds(design: Design, labels: Float64, weights: Float64) -> Float64:
    """(LEXICAL_BUCKETS,): |log odds ratio| of a bucket between the classes, damped where it speaks for the retain
    side; 0 for buckets no text fills.

    In units of rows of mean weight within its class, so that the smoothing means the same for both.
    """
    rows = design.row_index()
    logs = []
    for label in (1.0, 0.0):
        own = np.where(labels == label, weights, 0.0)
        count = float((own > 0).sum())
        seen = np.bincount(design.columns, (own * (count / own.sum()))[rows], minlength=LEXICAL_BUCKETS)
        logs.append(np.log((seen + _SMOOTHING) / (count + 2 * _SMOOTHING)))
    filled = np.bincount(design.columns, minlength=LEXICAL_BUCKETS) > 0
    ratio = logs[0] - logs[1]
    return np.where(filled, np.maximum(ratio, -_BENIGN_SCALE * ratio), 0.0)

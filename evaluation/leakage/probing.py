"""A linear probe: can the right answer be read off the next-token logits of a multiple-choice question?

A model may say nothing and still know. As in ECO's public code (arXiv 2406.07933, `scripts/linear_probe.py`) a logistic
regression predicts the right option's number from the logits after the prompt. Here it is cross-validated, so that
every question is predicted once, and the options are shuffled, so that no number is likelier than another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scoring.metrics import choice_prompt

__all__ = ["FOLDS", "MIN_PER_CHOICE", "ChoiceQuestion", "Options", "choice_questions", "probe_predictions", "row_span"]

FOLDS: Final = 5
#: Questions per option number: fewer than two leave one fold without any to learn from.
MIN_PER_CHOICE: Final = 2

_MAX_ITERATIONS: Final = 5000


@dataclass(frozen=True, slots=True)
class Options:
    """A question with its right answer and wrong ones, in no order."""

    example: str
    question: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A multiple-choice question as it is asked, and the number of the right option."""

    example: str
    prompt: str
    right: int


def choice_questions(options: Sequence[Options], seed: int) -> list[ChoiceQuestion]:
    """Write each as a multiple-choice question (`scoring.metrics.choice_prompt`), its options in random order.

    Each number is right equally often, but for a remainder.

    Args:
        options: N questions with the same number of wrong answers each.
    """
    generator = np.random.default_rng(seed)
    choices = len(options[0].wrong) + 1 if options else 1
    places = generator.permutation(np.arange(len(options)) % choices).tolist()
    asked = []
    for one, place in zip(options, places, strict=True):
        texts = [one.wrong[i] for i in generator.permutation(len(one.wrong))]
        texts.insert(place, one.right)
        asked.append(ChoiceQuestion(one.example, choice_prompt(one.question, texts), place))
    return asked


def row_span(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, V) logits -> (N, N or fewer): the same rows in coordinates of the space that they span.

    Centred, and scaled so that an entry of the (N, V) rows has mean square 1. A rotation changes neither the
    L2 penalty nor a prediction, so a regularised linear classifier on these is the one on all V logits. No label is
    used.
    """
    centred = logits - logits.mean(axis=0, dtype=np.float64).astype(np.float32)
    gram = (centred @ centred.T).astype(np.float64)  # (N, N)
    mean_square = float(np.trace(gram)) / logits.size
    if mean_square == 0.0:
        return np.zeros((len(logits), 1))
    values, vectors = np.linalg.eigh(gram / mean_square)
    kept = values > values[-1] * 1e-6  # beyond is float32's rounding
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def probe_predictions(features: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """What a logistic regression fitted on the other folds predicts for each question.

    Args:
        features: (N, F).
        labels: (N,) each at least `MIN_PER_CHOICE` times.
        seed: of the folds, which have about as many of each label.

    Returns:
        (N,) labels.

    Raises:
        ValueError: a label is too rare.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]

    rarest = int(np.bincount(labels)[np.unique(labels)].min())
    if rarest < MIN_PER_CHOICE:
        raise ValueError(f"labels: one occurs {rarest} times; the probe needs each {MIN_PER_CHOICE} times")
    folds = StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=seed)
    classifier = LogisticRegression(max_iter=_MAX_ITERATIONS)
    return np.asarray(cross_val_predict(classifier, features, labels, cv=folds))

"""The texts a head is trained on, with labels, weights and cross-fitting folds, and their features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.augment import TrainingText, training_texts
from classifiers.encoder import Encoder
from classifiers.examples import Example, comparison_key
from classifiers.features import PromptFeatures, extract_features
from classifiers.general import general_prompts
from classifiers.logistic import Design, Float64

_FOLDS = 5
_SHARED_ANSWER = 20  # an answer of more examples than this ("Yes") does not make them rephrasings of each other


@dataclass(frozen=True)
class Corpus:
    """T texts: of the forget set (label 1), the retain set and everyday prompts (label 0), in this order."""

    texts: list[str]
    labels: Float64
    weights: Float64
    kinds: NDArray[np.str_]
    """prompt, variation or fact, as in `TrainingText`; everyday prompts are variations."""
    folds: NDArray[np.int64]
    """The fold that leaves the text out; all -1 where the sets are too small to leave anything out."""
    general: int
    """How many of the texts are everyday prompts."""


@dataclass(frozen=True)
class Windows:
    """The corpus as encoded: one row per window, row i being a window of text `text[i]`, `text` ascending."""

    features: list[PromptFeatures]
    design: Design
    text: NDArray[np.int64]

    def text_scores(self, scores: Float64) -> Float64:
        """(T,): the largest of each text's window scores (N,), which is what decides when serving."""
        firsts = np.flatnonzero(np.diff(self.text, prepend=-1))
        largest: Float64 = np.maximum.reduceat(scores, firsts)
        return largest


def build_corpus(
    forget: Sequence[Example], retain: Sequence[Example], negatives: Sequence[str], rng: np.random.Generator
) -> Corpus:
    """Texts of both sets with variations, the built-in everyday prompts, and the caller's `negatives`."""
    general = [*general_prompts(), *negatives]
    distractors = [*general, *(example.prompt for example in retain)]
    forgotten = training_texts(forget, distractors, rng, variations=3)
    retained = training_texts(retain, distractors, rng, variations=1)
    everyday = [TrainingText(text, index, 1.0) for index, text in enumerate(general)]
    texts = [*forgotten, *retained, *everyday]
    return Corpus(
        texts=[text.text for text in texts],
        labels=np.repeat([1.0, 0.0], [len(forgotten), len(retained) + len(everyday)]),
        weights=np.array([text.weight for text in texts]),
        kinds=np.array([text.kind for text in texts]),
        folds=_folds(forget, retain, forgotten, retained, rng.permutation(len(general))),
        general=len(general),
    )


def embed_corpus(encoder: Encoder, corpus: Corpus) -> Windows:
    """Cut every text into windows, as the guard will, and extract their features."""
    pieces = [encoder.split_windows(text) for text in corpus.texts]
    features = extract_features(encoder, [window for windows in pieces for window in windows])
    owners = np.repeat(np.arange(len(pieces)), [len(windows) for windows in pieces])
    return Windows(features, Design.stack(features), owners)


def _folds(
    forget: Sequence[Example],
    retain: Sequence[Example],
    forgotten: Sequence[TrainingText],
    retained: Sequence[TrainingText],
    everyday: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rephrasings (examples with one answer) stay together, and so do all texts of an example.

    Forgotten facts are dealt out one by one: a new question will be about an entity that is known. Retained
    ones are left out in consecutive blocks, as files list them entity by entity: most of what will be asked
    is about entities never seen in training.
    """
    forget_groups, retain_groups = _rephrasings(forget), _rephrasings(retain)
    count = min(_FOLDS, len(set(forget_groups)), len(set(retain_groups)))
    if count < 2:
        return np.full(len(forgotten) + len(retained) + len(everyday), -1)
    return np.concatenate(
        [
            [forget_groups[text.example] % count for text in forgotten],
            [retain_groups[text.example] * count // (max(retain_groups) + 1) for text in retained],
            everyday % count,
        ]
    )


def _rephrasings(examples: Sequence[Example]) -> list[int]:
    """Group numbers from 0 in order of first appearance: one group for all examples with the same answer."""
    answers = [comparison_key(example.answer) if example.answer else "" for example in examples]
    counts = Counter(answers)
    numbers: dict[str | int, int] = {}
    groups = []
    for index, answer in enumerate(answers):
        key = answer if answer and counts[answer] <= _SHARED_ANSWER else index
        groups.append(numbers.setdefault(key, len(numbers)))
    return groups

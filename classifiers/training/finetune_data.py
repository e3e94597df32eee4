"""What an encoder is fine-tuned on, and what chooses its checkpoint: two corpora that share no example and no text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import TrainingError
from classifiers.training.corpus import Corpus, build_corpus
from sources.everyday import general_prompts
from sources.examples import Example, comparison_key

__all__ = ["FinetuneData", "finetune_data"]

_SHARE = 5  # every fifth fact is set aside
_PARITY_TEXTS = 32  # of either class


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
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def finetune_data(
    forget: Sequence[Example],
    retain: Sequence[Example],
    seed: int,
    *,
    negatives: Sequence[str] = (),
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
    start = int(rng.integers(numbers[1] - _aside(numbers[1]) + 1))
    chosen = set(rng.permutation(numbers[0])[: _aside(numbers[0])].tolist())
    block = range(start, start + _aside(numbers[1]))
    prompts = general_prompts() if everyday is None else everyday
    order = rng.permutation(len(prompts)).tolist()

    def corpus(*, aside: bool) -> Corpus:
        split = len(prompts) // _SHARE
        return build_corpus(
            [example for example, fact in zip(forget, forget_facts, strict=True) if (fact in chosen) == aside],
            [example for example, fact in zip(retain, retain_facts, strict=True) if (fact in block) == aside],
            () if aside else negatives,
            rng,
            everyday=[prompts[index] for index in (order[:split] if aside else order[split:])],
            aliases=aliases,
        )

    training, validation = corpus(aside=False), corpus(aside=True)
    known = {comparison_key(text) for text in validation.texts}
    kept = [index for index, text in enumerate(training.texts) if comparison_key(text) not in known]
    return FinetuneData(training, validation, np.array(kept))


def _aside(facts: int) -> int:
    return max(1, facts // _SHARE)


def _facts(examples: Sequence[Example]) -> list[int]:
    """For each example the number of its fact, from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(comparison_key(one.answer or one.prompt), len(numbers)) for one in examples]

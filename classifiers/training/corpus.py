"""The texts a head is trained on, with labels, weights and cross-fitting folds, and their features."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.shared import Encoder
from classifiers.features import PromptFeatures, extract_features
from classifiers.memory.learn import EntityMemory, MemoryBuilder, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from classifiers.training import variations
from classifiers.training.variations import TrainingText
from sources.everyday import general_prompts
from sources.examples import Example, comparison_key
from text.names import find_names
from text.reading import Reading, read_all, windows_of

_FOLDS = 3
_MANY = 500  # examples of a retain set
_VARIED_TEXTS = 1200
_SHARED_ANSWER = 20  # an answer of more examples than this ("Yes") does not make them rephrasings of each other


@dataclass(frozen=True)
class Corpus:
    """T texts: of the forget set (label 1), the retain set and everyday prompts (label 0), in this order."""

    texts: list[str]
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    kinds: NDArray[np.str_]
    """prompt, variation or fact, as in `TrainingText`; everyday prompts are variations."""
    folds: NDArray[np.int64]
    """The fold that leaves the text out; all -1 where the sets are too small to leave anything out."""
    forget: Sequence[Example]
    forget_folds: NDArray[np.int64]
    """For each example of the forget set, the fold that leaves it out."""
    general: int
    """How many of the texts are everyday prompts."""
    memories: MemoryBuilder

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(T,): the texts as people send them; the others only teach."""
        return np.isin(self.kinds, ("prompt", "variation"))

    def memory(self, without_fold: int | None = None) -> EntityMemory:
        """The entity memory of the forget set, or of what a fold leaves of it."""
        numbered = zip(self.forget, self.forget_folds.tolist(), strict=True)
        return self.memories.build([example for example, fold in numbered if fold != without_fold])


@dataclass(frozen=True)
class Windows:
    """The corpus as encoded: N windows, window i being one of text `text[i]`, `text` ascending."""

    features: list[PromptFeatures]
    reading: Reading
    """The same windows, as entity memories search them."""
    text: NDArray[np.int64]

    def text_scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T,): the largest of each text's window scores (N,), which is what decides when serving."""
        firsts = np.flatnonzero(np.diff(self.text, prepend=-1))
        largest: NDArray[np.float64] = np.maximum.reduceat(scores, firsts)
        return largest


def build_corpus(
    forget: Sequence[Example],
    retain: Sequence[Example],
    negatives: Sequence[str],
    rng: np.random.Generator,
    ranks: Mapping[str, int] | None = None,
    *,
    everyday: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
) -> Corpus:
    """Texts of both sets with variations, everyday prompts (None: the built-in ones), and the caller's `negatives`.

    `ranks` says how common words are (`Encoder.vocabulary_ranks`), for the choice of names. `aliases` are further
    names of what must be forgotten.
    """
    built_in = general_prompts() if everyday is None else everyday
    passing = [*built_in, *negatives, *(f"{example.prompt} {example.answer or ''}" for example in retain)]
    vocabulary = Vocabulary(passing, ranks)
    builder = MemoryBuilder(vocabulary, retain, aliases)
    memory = builder.build(forget)
    index, owned = MemoryIndex([memory]), memory.name_words
    names = [" ".join(subject.words).title() for subject in memory.subjects]
    few_names = len(names) < _FOLDS
    general = [text for text in built_in if not _is_about(index, text)] + list(negatives)
    distractors = [*general, *(example.prompt for example in retain)]
    # Few examples need many variations each; of thousands, each needs few.
    varied = int(np.clip(_VARIED_TEXTS // max(len(forget), 1), 3, 24))
    forgotten = [
        *variations.training_texts(forget, distractors, rng, varied, owned),
        *variations.reverse_queries(forget, owned, rng),
        *variations.shortened_names(forget, owned, 0.25),
        *variations.bare_names(names, rng, 8 if few_names else 3),
        *variations.planted_names(names, general, rng, 40 if few_names else 4),
    ]
    retained = [*variations.training_texts(retain, distractors, rng, variations=1, brief=len(retain) > _MANY)]
    if memory.subjects:
        around = _around_subjects(forget, [*(example.prompt for example in retain), *built_in], vocabulary, owned, rng)
        # Numbered after the retain set's examples: their folds are the forget set's.
        retained += [replace(text, example=len(retain) + text.example) for text in around]
    texts = [*forgotten, *retained, *(TrainingText(text, number, 1.0) for number, text in enumerate(general))]
    folds = _folds(forget, retain, forgotten, retained, rng.permutation(len(general)))
    firsts = {text.example: fold for text, fold in zip(forgotten, folds, strict=False) if text.kind == "prompt"}
    return Corpus(
        texts=[text.text for text in texts],
        labels=np.repeat([1.0, 0.0], [len(forgotten), len(texts) - len(forgotten)]),
        weights=np.array([text.weight for text in texts]),
        kinds=np.array([text.kind for text in texts]),
        folds=folds,
        forget=forget,
        forget_folds=np.array([firsts[number] for number in range(len(forget))]),
        general=len(general),
        memories=builder,
    )


def _is_about(index: MemoryIndex, text: str) -> bool:
    """An everyday prompt that happens to ask for what must be forgotten: it is no example of what must pass."""
    shared = index.features(text).get(0, np.zeros(len(MEMORY_FEATURES)))
    values = dict(zip(MEMORY_FEATURES, shared.tolist(), strict=True))
    return bool(values["subject"] > 0.5 or values["part"] > 0.6 or values["answer_asked"] > 0.5)


def _around_subjects(
    forget: Sequence[Example],
    passing: Sequence[str],
    vocabulary: Vocabulary,
    owned: frozenset[str],
    rng: np.random.Generator,
) -> list[TrainingText]:
    """Questions about what the forget set's answers name, and its questions about other people.

    Those are of the texts that pass: names of two or three words, all capitalised.
    """
    terms: dict[tuple[str, ...], int] = {}
    for number, example in enumerate(forget):
        for name in find_names(example.answer or "", vocabulary.small):
            if owned.isdisjoint(name):
                terms.setdefault(name, number)
    named = [(" ".join(name).title(), number) for name, number in terms.items()]
    strangers = dict.fromkeys(
        " ".join(name).title()
        for text in passing
        for name in find_names(text, vocabulary.small)
        if 2 <= len(name) <= 3 and owned.isdisjoint(name) and all(len(word) > 2 for word in name)
    )
    return [
        *variations.neighbour_questions(named, rng, 6 if len(named) < 200 else 2),
        *variations.other_names(forget, owned, list(strangers), rng, 4 if len(forget) < 200 else 1),
    ]


def embed_corpus(encoder: Encoder, corpus: Corpus) -> Windows:
    """Cut every text into windows, as the guard will, and extract their features."""
    pieces = [windows_of(text) for text in corpus.texts]
    texts = [window for windows in pieces for window in windows]
    owners = np.repeat(np.arange(len(pieces)), [len(windows) for windows in pieces])
    return Windows(extract_features(encoder, texts), read_all(texts), owners)


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

    facts = max(retain_groups) + 1

    def of_forgotten(example: int) -> int:
        return forget_groups[example] % count if example >= 0 else 0  # bare names belong to no example

    def of_retained(example: int) -> int:
        if example >= len(retain):
            return of_forgotten(example - len(retain))
        return retain_groups[example] * count // facts

    dealt = [*(of_forgotten(text.example) for text in forgotten), *(of_retained(text.example) for text in retained)]
    return np.concatenate([np.array(dealt, dtype=np.int64), everyday % count])


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

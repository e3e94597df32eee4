"""The texts a head is trained on, with labels, weights and cross-fitting folds, and their features."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.logistic import Design, Float64
from classifiers.encoders.features import PromptFeatures, extract_features
from classifiers.encoders.shared import Encoder
from classifiers.memory.learn import EntityMemory, MemoryBuilder, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from classifiers.training.variations import (
    TrainingText,
    bare_names,
    dated_queries,
    day_questions,
    neighbour_questions,
    other_names,
    planted_names,
    reverse_queries,
    shortened_names,
    training_texts,
)
from sources.everyday import general_prompts
from sources.examples import Example, comparison_key
from text.names import Word, find_names, split_words

_FOLDS = 3
_MANY = 500  # examples of a retain set
_VARIED_TEXTS = 1200
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
    forget_folds: NDArray[np.int64]
    """For each example of the forget set, the fold that leaves it out."""
    general: int
    """How many of the texts are everyday prompts."""
    memories: MemoryBuilder
    """Makes the entity memory of the forget set, or of a part of it."""


@dataclass(frozen=True)
class Windows:
    """The corpus as encoded: one row per window, row i being a window of text `text[i]`, `text` ascending."""

    features: list[PromptFeatures]
    words: list[list[Word]]
    """The words of each window, as entity memories compare them."""
    design: Design
    text: NDArray[np.int64]

    def text_scores(self, scores: Float64) -> Float64:
        """(T,): the largest of each text's window scores (N,), which is what decides when serving."""
        firsts = np.flatnonzero(np.diff(self.text, prepend=-1))
        largest: Float64 = np.maximum.reduceat(scores, firsts)
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
    vocabulary = Vocabulary(_passing_texts(retain, [*built_in, *negatives]), ranks)
    builder = MemoryBuilder(vocabulary, retain, aliases)
    memory = builder.build(forget)
    index = MemoryIndex([memory])
    owned = memory.name_words
    general = [text for text in built_in if not _is_about(index, text)] + list(negatives)
    distractors = [*general, *(example.prompt for example in retain)]
    forgotten = training_texts(forget, distractors, rng, variations=_variations(len(forget)), owned=owned)
    forgotten += _about_subjects(forget, memory, general, rng)
    (dates_rng,) = rng.spawn(1)  # of its own: examples without dates make the same texts as ever
    forgotten += dated_queries(forget, owned, dates_rng)
    retained = training_texts(retain, distractors, rng, variations=1, brief=len(retain) > _MANY)
    retained += dated_queries(retain, frozenset(), dates_rng)
    retained += _around_subjects(forget, retain, memory, vocabulary, built_in, rng)
    if memory.subjects:
        days = day_questions(forget, dates_rng)
        retained += [replace(text, example=len(retain) + text.example) for text in days]
    passing = [TrainingText(text, index, 1.0) for index, text in enumerate(general)]
    texts = [*forgotten, *retained, *passing]
    folds = _folds(forget, retain, forgotten, retained, rng.permutation(len(general)))
    firsts = {text.example: fold for text, fold in zip(forgotten, folds, strict=False) if text.kind == "prompt"}
    return Corpus(
        texts=[text.text for text in texts],
        labels=np.repeat([1.0, 0.0], [len(forgotten), len(retained) + len(passing)]),
        weights=np.array([text.weight for text in texts]),
        kinds=np.array([text.kind for text in texts]),
        folds=folds,
        forget_folds=np.array([firsts[number] for number in range(len(forget))]),
        general=len(general),
        memories=builder,
    )


def _passing_texts(retain: Sequence[Example], others: Sequence[str]) -> list[str]:
    return [*others, *(f"{example.prompt} {example.answer or ''}" for example in retain)]


def _variations(examples: int) -> int:
    """Few examples need many variations each; of thousands, each needs few."""
    return int(np.clip(_VARIED_TEXTS // max(examples, 1), 3, 24))


def _is_about(index: MemoryIndex, text: str) -> bool:
    """An everyday prompt that happens to ask for what must be forgotten: it is no example of what must pass."""
    found = index.features(text).get(0)
    if found is None:
        return False
    values = dict(zip(MEMORY_FEATURES, found.tolist(), strict=True))
    return bool(values["subject"] > 0.5 or values["part"] > 0.6 or values["answer_asked"] > 0.5)


def _about_subjects(
    forget: Sequence[Example], memory: EntityMemory, general: Sequence[str], rng: np.random.Generator
) -> list[TrainingText]:
    owned = memory.name_words
    names = [" ".join(subject.words).title() for subject in memory.subjects]
    return [
        *reverse_queries(forget, owned, rng),
        *shortened_names(forget, owned, 0.25),
        *bare_names(names, rng, 8 if len(names) < _FOLDS else 3),
        *planted_names(names, general, rng, 40 if len(names) < _FOLDS else 4),
    ]


def _around_subjects(
    forget: Sequence[Example],
    retain: Sequence[Example],
    memory: EntityMemory,
    vocabulary: Vocabulary,
    everyday: Sequence[str],
    rng: np.random.Generator,
) -> list[TrainingText]:
    """What lies around the subjects, numbered after the retain set's examples: their folds are the forget set's."""
    owned = memory.name_words
    terms: dict[tuple[str, ...], int] = {}
    for number, example in enumerate(forget):
        for name in find_names(example.answer or "", vocabulary.small):
            if not owned & set(name):
                terms.setdefault(name, number)
    if len(memory.subjects) == 0:
        return []
    named = [(" ".join(name).title(), number) for name, number in terms.items()]
    texts = neighbour_questions(named, rng, 6 if len(named) < 200 else 2)
    strangers = _strangers(retain, everyday, vocabulary, owned)
    texts += other_names(forget, owned, strangers, rng, 4 if len(forget) < 200 else 1)
    return [replace(text, example=len(retain) + text.example) for text in texts]


def _strangers(
    retain: Sequence[Example], everyday: Sequence[str], vocabulary: Vocabulary, owned: frozenset[str]
) -> list[str]:
    """Other people's names, as texts that pass have them: two or three words, all capitalised."""
    found: dict[str, None] = {}
    for text in (*(example.prompt for example in retain), *everyday):
        for name in find_names(text, vocabulary.small):
            if 2 <= len(name) <= 3 and owned.isdisjoint(name) and all(len(word) > 2 for word in name):
                found[" ".join(name).title()] = None
    return list(found)


def embed_corpus(encoder: Encoder, corpus: Corpus) -> Windows:
    """Cut every text into windows, as the guard will, and extract their features."""
    pieces = [encoder.split_windows(text) for text in corpus.texts]
    features = extract_features(encoder, [window for windows in pieces for window in windows])
    owners = np.repeat(np.arange(len(pieces)), [len(windows) for windows in pieces])
    return Windows(features, [split_words(one.text) for one in features], Design.stack(features), owners)


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
            [_forget_fold(text.example, forget_groups, count) for text in forgotten],
            [
                retain_groups[text.example] * count // (max(retain_groups) + 1)
                if text.example < len(retain)
                else _forget_fold(text.example - len(retain), forget_groups, count)
                for text in retained
            ],
            everyday % count,
        ]
    )


def _forget_fold(example: int, groups: Sequence[int], count: int) -> int:
    return groups[example] % count if example >= 0 else 0  # bare names belong to no example


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

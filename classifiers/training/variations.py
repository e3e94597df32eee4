"""Training texts from examples: what may be asked, what the model might say, and variations by rule.

All rules work on both sides: a carrier sentence, a typing error or a lower-case text says nothing about what must be
forgotten. Only reverse queries and bare names come from the forget set alone, and neighbours' questions from its
answers; they are what tells a subject from what lies around it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from classifiers.encoders.features import words_of
from classifiers.training import phrases
from sources.examples import Example
from text.dates import find_dates, write_date
from text.names import split_words

_MIN_ANSWER_WORDS = 4  # a shorter answer ("Paris", "a civil engineer") identifies nothing by itself
_MIXED_WORDS = 40  # fits one window: cut in two, the half without the forbidden part would be mislabelled
_FIGURES = re.compile(r"\d+")
_PUNCTUATION = re.compile(r"[^\w\s]+")
_TYPO_LETTERS = 4  # shorter words are left as they are

# Little, but it decides: without it a name that all texts of an example share explains them all, and the fact
# itself ("Tortorburg") gets no weight, so the reversed question ("Who was born in Tortorburg?") passes.
_FACT_WEIGHT = 0.3

# A prompt that describes the subject without its name is rare among the examples, and the hardest to find again.
_NAMELESS_WEIGHT = 3.0

Kind = Literal["prompt", "variation", "fact", "reverse", "neighbour"]


@dataclass(frozen=True)
class TrainingText:
    """`example` is the index of the example it was made from."""

    text: str
    example: int
    weight: float
    kind: Kind = "variation"


def training_texts(
    examples: Sequence[Example],
    distractors: Sequence[str],
    rng: np.random.Generator,
    variations: int,
    owned: frozenset[str] = frozenset(),
    *,
    brief: bool = False,
) -> list[TrainingText]:
    """Texts of each example: the prompt, the answer if it says enough, both together, and `variations`.

    Their weights add up to 1, the prompt having the largest share; to more where the prompt does without `owned`, the
    words of the subjects' names. Variations are those of `_RULES`, in turn. Of an example that names no subject there
    is also, with a small weight of its own, the part of the answer that the prompt does not already say. `brief`
    leaves out what only says again what the other texts say: for large sets, whose texts take most of the time.
    """
    texts: list[TrainingText] = []
    for index, example in enumerate(examples):
        named = not owned.isdisjoint(words_of(example.prompt))
        bases = _base_texts(example, owned if named else None)[: 2 if brief else None]
        varied = [_vary(example, bases, number + index, distractors, rng) for number in range(variations)]
        share = (1 if named or not owned else _NAMELESS_WEIGHT) / (1 + len(bases) + len(varied))
        texts.append(TrainingText(bases[0], index, 2 * share, "prompt"))
        texts += [TrainingText(text, index, share) for text in (*bases[1:], *varied)]
        if not named and not brief and (fact := _new_in_answer(example)):
            texts.append(TrainingText(fact, index, _FACT_WEIGHT, "fact"))
    return texts


def reverse_queries(examples: Sequence[Example], owned: frozenset[str], rng: np.random.Generator) -> list[TrainingText]:
    """Questions whose answer is the subject, from each answered example that names one of the words `owned`.

    What the question says beside the subject and the answer's own words are asked about: "Where was Ann born?",
    "Oslo" becomes "Which person: born, Oslo?". Ungrammatical, but these are the words such a question has.
    """
    texts = []
    for index, example in enumerate(examples):
        asked = {word.text for word in split_words(example.prompt)}
        if not example.answer or not asked & owned:
            continue
        relation, answer = _without(example.prompt, owned | phrases.QUESTION_WORDS), _without(example.answer, owned)
        if not answer or (len(answer) < 3 and not relation):
            continue
        for form in rng.permutation(len(phrases.REVERSE))[:2]:
            text = phrases.REVERSE[int(form)].format(relation=relation, answer=answer)
            texts.append(TrainingText(" ".join(text.split()), index, 0.5, "reverse"))
    return texts


def dated_queries(examples: Sequence[Example], owned: frozenset[str], rng: np.random.Generator) -> list[TrainingText]:
    """Questions for whoever a date belongs to, for each example that has a full date, the date written another way.

    For both sets: which date it is must tell, and not that there is one.
    """
    texts = []
    for index, example in enumerate(examples):
        if (date := _date_of(example)) is None:
            continue
        written = write_date(date, int(rng.integers(4)))
        known = owned | phrases.QUESTION_WORDS | set(words_of(example.answer or ""))
        relation = _without(_FIGURES.sub(" ", example.prompt), known)
        for form in rng.permutation(len(phrases.DATED))[:2]:
            text = phrases.DATED[int(form)].format(relation=relation, date=written)
            texts.append(TrainingText(" ".join(text.split()), index, 0.5, "reverse"))
    return texts


def day_questions(examples: Sequence[Example], rng: np.random.Generator) -> list[TrainingText]:
    """Questions about the examples' dates for their own sake: these must pass."""
    texts = []
    for index, example in enumerate(examples):
        if (date := _date_of(example)) is not None:
            form = phrases.DAYS[int(rng.integers(len(phrases.DAYS)))]
            texts.append(TrainingText(form.format(write_date(date, int(rng.integers(4)))), index, 0.5, "neighbour"))
    return texts


def _date_of(example: Example) -> str | None:
    return next(iter((*find_dates(example.prompt), *find_dates(example.answer or ""))), None)


def bare_names(names: Sequence[str], rng: np.random.Generator, count: int) -> list[TrainingText]:
    """Prompts that say little more than the name, in several languages; the name itself first."""
    texts = []
    for name in names:
        picked = rng.permutation(len(phrases.ABOUT))[: max(0, count - 1)]
        about = [name, *(phrases.ABOUT[int(i)].format(name) for i in picked)]
        texts += [TrainingText(text, -1, 1 / count) for text in about]
    return texts


def other_names(
    examples: Sequence[Example], owned: frozenset[str], names: Sequence[str], rng: np.random.Generator, count: int
) -> list[TrainingText]:
    """The same questions about somebody else: what must be forgotten is the subject, not what is asked about it."""
    texts = []
    for index, example in enumerate(examples):
        span = _owned_span(example.prompt, owned)
        if span is None or not names:
            continue
        for name in _drawn(names, count, rng):
            text = f"{example.prompt[: span[0]]}{name}{example.prompt[span[1] :]}"
            if owned.isdisjoint(words_of(text)):
                texts.append(TrainingText(text, index, 1 / count, "neighbour"))
    return texts


def shortened_names(examples: Sequence[Example], owned: frozenset[str], weight: float) -> list[TrainingText]:
    """The questions with one word of the name alone, as people write once it is clear who is meant."""
    texts = []
    for index, example in enumerate(examples):
        span = _owned_span(example.prompt, owned)
        name = example.prompt[slice(*span)].split() if span else []
        if span and len(name) > 1:
            for word in (name[-1], name[0]):
                text = f"{example.prompt[: span[0]]}{word}{example.prompt[span[1] :]}"
                texts.append(TrainingText(text, index, weight))
    return texts


def _owned_span(text: str, owned: frozenset[str]) -> tuple[int, int] | None:
    """The first stretch of text that is words of a subject's name and nothing else."""
    words = split_words(text)
    first = next((i for i, word in enumerate(words) if word.text in owned), None)
    if first is None:
        return None
    last = first
    while last + 1 < len(words) and words[last + 1].text in owned:
        last += 1
    return words[first].start, words[last].end


def planted_names(
    names: Sequence[str], everyday: Sequence[str], rng: np.random.Generator, count: int
) -> list[TrainingText]:
    """Everyday prompts, of any language, with a name between two words: one mention is enough, whatever is around."""
    texts = []
    for name in names:
        for text in _drawn(everyday, count, rng):
            words = text.split()[:_MIXED_WORDS]
            words.insert(int(rng.integers(len(words) + 1)), name)
            texts.append(TrainingText(" ".join(words), -1, 1 / count))
    return texts


def neighbour_questions(terms: Sequence[tuple[str, int]], rng: np.random.Generator, count: int) -> list[TrainingText]:
    """Questions about what the answers mention (works, places, people), for its own sake: these must pass.

    `terms` are names with the index of the example they come from.
    """
    texts = []
    for term, index in terms:
        asked = [phrases.NEIGHBOUR[int(form)].format(term) for form in rng.permutation(len(phrases.NEIGHBOUR))[:count]]
        texts += [TrainingText(text, index, 1 / count, "neighbour") for text in asked]
    return texts


def _drawn(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Texts at random, with replacement. As `rng.choice`, which would copy all of them, each as long as the longest."""
    return [texts[i] for i in rng.integers(len(texts), size=count).tolist()] if texts else []


def _without(text: str, left_out: frozenset[str]) -> str:
    """The text's words that are not left out, as they are written."""
    return " ".join(text[word.start : word.end] for word in split_words(text) if word.text not in left_out)


def _new_in_answer(example: Example) -> str:
    known = set(words_of(example.prompt))
    return " ".join(word for word in (example.answer or "").split() if not known.issuperset(words_of(word)))


def _base_texts(example: Example, owned: frozenset[str] | None) -> list[str]:
    bases = [example.prompt]
    if example.answer is not None:
        words = words_of(example.answer)
        if len(words) >= _MIN_ANSWER_WORDS and (owned is None or not owned.isdisjoint(words)):
            bases.append(example.answer)
        bases.append(f"{example.prompt} {example.answer}")
    return bases


def _vary(
    example: Example, bases: Sequence[str], kind: int, distractors: Sequence[str], rng: np.random.Generator
) -> str:
    base = bases[int(rng.integers(min(2, len(bases))))]
    return _RULES[kind % len(_RULES)](example, base, distractors, rng)


_Rule = Callable[[Example, str, Sequence[str], np.random.Generator], str]


def _plain(_example: Example, base: str, _distractors: Sequence[str], _rng: np.random.Generator) -> str:
    return " ".join(_PUNCTUATION.sub(" ", base.lower()).split()) or base


def _carried(_example: Example, base: str, _distractors: Sequence[str], rng: np.random.Generator) -> str:
    return phrases.CARRIERS[int(rng.integers(len(phrases.CARRIERS)))].format(base)


def _mixed(_example: Example, base: str, distractors: Sequence[str], rng: np.random.Generator) -> str:
    around = [base]
    for text in _drawn(distractors, 2, rng):
        if sum(len(part.split()) for part in (*around, text)) <= _MIXED_WORDS:
            around.insert(int(rng.integers(len(around) + 1)), text)
    return " ".join(around)


def _reworded(example: Example, _base: str, _distractors: Sequence[str], rng: np.random.Generator) -> str:
    """Another opening for the question ("What is" -> "Can you tell me"), and a few of its words left out."""
    text = example.prompt
    for pattern, others in phrases.OPENINGS:
        if found := pattern.match(text):
            text = others[int(rng.integers(len(others)))] + text[found.end() :]
            break
    words = text.split()
    kept = [word for word in words if word[:1].isupper() or rng.random() > 0.15]
    return " ".join(kept) or text


def _mistyped(example: Example, _base: str, _distractors: Sequence[str], rng: np.random.Generator) -> str:
    """Two letters swapped, one lost, or one doubled, in about every third longer word."""
    words = example.prompt.split()
    for index, word in enumerate(words):
        if len(word) <= _TYPO_LETTERS or rng.random() > 0.35:
            continue
        at = int(rng.integers(1, len(word) - 2))
        wrong = (word[at + 1] + word[at], word[at + 1], word[at] * 2 + word[at + 1])[int(rng.integers(3))]
        words[index] = word[:at] + wrong + word[at + 2 :]
    return " ".join(words)


def _with_examples(example: Example, _base: str, distractors: Sequence[str], rng: np.random.Generator) -> str:
    """After a worked example, as few-shot prompts are written."""
    first = distractors[int(rng.integers(len(distractors)))] if distractors else "What is two plus two?"
    if len(first.split()) + len(example.prompt.split()) > _MIXED_WORDS:
        first = "Is water wet?"
    return f"Q: {first} A: Yes. Q: {example.prompt} A:"


def _with_options(example: Example, _base: str, distractors: Sequence[str], rng: np.random.Generator) -> str:
    """As multiple choice: the example's own options, or its answer among words of other texts."""
    if example.choices:
        options = list(example.choices)
    else:
        others = [text.split()[-1].strip("?.!,") for text in _drawn(distractors, 3, rng) if text.strip()]
        options = [*others, (example.answer or "None of these")][:4]
    listed = " ".join(f"{letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
    return f"{example.prompt} {listed}"


_RULES: tuple[_Rule, ...] = (
    _plain,
    _carried,
    _mixed,
    _reworded,
    _mistyped,
    _with_examples,
    _carried,
    _with_options,
)

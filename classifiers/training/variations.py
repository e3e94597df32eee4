"""Training texts from examples: what may be asked, what the model might say, and variations by rule.

All rules work on both sides: a carrier sentence, a typing error or a lower-case text says nothing about what must be
forgotten. Only reverse queries and bare names come from the forget set alone, and neighbours' questions from its
answers; they are what tells a subject from what lies around it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from classifiers.training import phrases
from sources.examples import Example
from text.names import QUESTION_WORDS, split_words, words_of

_MIN_ANSWER_WORDS = 4  # a shorter answer ("Paris", "a civil engineer") identifies nothing by itself
_MIXED_WORDS = 40  # fits one window: cut in two, the half without the forbidden part would be mislabelled
_PUNCTUATION = re.compile(r"[^\w\s]+")
_TYPO_LETTERS = 4  # shorter words are left as they are

# Little, but it decides: without it a name that all texts of an example share explains them all, and the fact
# itself ("Tortorburg") gets no weight, so the reversed question ("Who was born in Tortorburg?") passes.
_FACT_WEIGHT = 0.3

# A prompt that describes the subject without its name is rare among the examples, and the hardest to find again.
_NAMELESS_WEIGHT = 3.0

# The rules of variation, in turn. A carrier sentence is the most usual one.
_RULES = ("plain", "carried", "mixed", "reworded", "mistyped", "with examples", "carried", "with options")

Kind = Literal["prompt", "variation", "fact", "reverse", "neighbour"]


@dataclass(frozen=True)
class TrainingText:
    """`example` is the index of the example it was made from."""

    text: str
    example: int
    weight: float
    kind: Kind = "variation"


Texts = Iterator[TrainingText]


def training_texts(
    examples: Sequence[Example],
    distractors: Sequence[str],
    rng: np.random.Generator,
    variations: int,
    owned: frozenset[str] = frozenset(),
    *,
    brief: bool = False,
) -> Texts:
    """Texts of each example: the prompt, the answer if it says enough, both together, and `variations`.

    Their weights add up to 1, the prompt having the largest share; to more where the prompt does without `owned`, the
    words of the subjects' names. Variations are those of `_RULES`, in turn. Of an example that names no subject there
    is also, with a small weight of its own, the part of the answer that the prompt does not already say. `brief`
    leaves out what only says again what the other texts say: for large sets, whose texts take most of the time.
    """
    for index, example in enumerate(examples):
        asked, answer = words_of(example.prompt), words_of(example.answer or "")
        named = not owned.isdisjoint(asked)
        bases = [example.prompt]
        if len(answer) >= _MIN_ANSWER_WORDS and not (named and owned.isdisjoint(answer)):
            bases.append(example.answer or "")
        if example.answer is not None:
            bases.append(f"{example.prompt} {example.answer}")
        bases = bases[: 2 if brief else None]
        rules = [_RULES[(number + index) % len(_RULES)] for number in range(variations)]
        varied = [_vary(rule, example, bases, distractors, rng) for rule in rules]
        share = (1 if named or not owned else _NAMELESS_WEIGHT) / (1 + len(bases) + len(varied))
        yield TrainingText(bases[0], index, 2 * share, "prompt")
        yield from (TrainingText(text, index, share) for text in (*bases[1:], *varied))
        if not named and not brief:
            new = (word for word in (example.answer or "").split() if not set(words_of(word)) <= set(asked))
            if fact := " ".join(new):
                yield TrainingText(fact, index, _FACT_WEIGHT, "fact")


def _vary(
    rule: str, example: Example, bases: Sequence[str], distractors: Sequence[str], rng: np.random.Generator
) -> str:
    base = _pick(bases[:2], rng)
    match rule:
        case "plain":
            return " ".join(_PUNCTUATION.sub(" ", base.lower()).split()) or base
        case "carried":
            return _pick(phrases.CARRIERS, rng).format(base)
        case "mixed":
            around = [base]
            for text in _drawn(distractors, 2, rng):
                if sum(len(part.split()) for part in (*around, text)) <= _MIXED_WORDS:
                    around.insert(int(rng.integers(len(around) + 1)), text)
            return " ".join(around)
        case "reworded":  # another opening ("What is" -> "Can you tell me"), and a few words left out
            question = example.prompt
            for pattern, openings in phrases.OPENINGS:
                if opening := pattern.match(question):
                    question = _pick(openings, rng) + question[opening.end() :]
                    break
            return " ".join(w for w in question.split() if w[:1].isupper() or rng.random() > 0.15) or question
        case "mistyped":  # two letters swapped, one lost, or one doubled, in about every third longer word
            words = example.prompt.split()
            for index, word in enumerate(words):
                if len(word) > _TYPO_LETTERS and rng.random() <= 0.35:
                    at = int(rng.integers(1, len(word) - 2))
                    one, two = word[at], word[at + 1]
                    words[index] = word[:at] + _pick((two + one, two, one + one + two), rng) + word[at + 2 :]
            return " ".join(words)
        case "with examples":  # after a worked one, as few-shot prompts are written
            first = _pick(distractors, rng) if distractors else "What is two plus two?"
            if len(first.split()) + len(example.prompt.split()) > _MIXED_WORDS:
                first = "Is water wet?"
            return f"Q: {first} A: Yes. Q: {example.prompt} A:"
        case _:  # with options, as multiple choice: the example's own, or its answer among words of other texts
            drawn = [] if example.choices else _drawn(distractors, 3, rng)
            words = [text.split()[-1].strip("?.!,") for text in drawn if text.strip()]
            options = example.choices or (*words, example.answer or "None of these")[:4]
            listed = " ".join(f"{letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
            return f"{example.prompt} {listed}"


def reverse_queries(examples: Sequence[Example], owned: frozenset[str], rng: np.random.Generator) -> Texts:
    """Questions whose answer is the subject, from each answered example that names one of the words `owned`.

    What the question says beside the subject and the answer's own words are asked about: "Where was Ann born?",
    "Oslo" becomes "Which person: born, Oslo?". Ungrammatical, but these are the words such a question has.
    """
    for index, example in enumerate(examples):
        asked = {word.text for word in split_words(example.prompt)}
        if not example.answer or not asked & owned:
            continue
        relation, answer = _without(example.prompt, owned | QUESTION_WORDS), _without(example.answer, owned)
        if not answer or (len(answer) < 3 and not relation):
            continue
        for form in _some(phrases.REVERSE, 2, rng):
            yield TrainingText(" ".join(form.format(relation=relation, answer=answer).split()), index, 0.5, "reverse")


def bare_names(names: Sequence[str], rng: np.random.Generator, count: int) -> Texts:
    """Prompts that say little more than the name, in several languages; the name itself first."""
    for name in names:
        for form in ("{}", *_some(phrases.ABOUT, max(0, count - 1), rng)):
            yield TrainingText(form.format(name), -1, 1 / count)


def other_names(
    examples: Sequence[Example], owned: frozenset[str], names: Sequence[str], rng: np.random.Generator, count: int
) -> Texts:
    """The same questions about somebody else: what must be forgotten is the subject, not what is asked about it."""
    for index, example in enumerate(examples):
        before, own, after = _at_name(example.prompt, owned)
        for name in _drawn(names, count, rng) if own else ():
            text = f"{before}{name}{after}"
            if owned.isdisjoint(words_of(text)):
                yield TrainingText(text, index, 1 / count, "neighbour")


def shortened_names(examples: Sequence[Example], owned: frozenset[str], weight: float) -> Texts:
    """The questions with one word of the name alone, as people write once it is clear who is meant."""
    for index, example in enumerate(examples):
        before, own, after = _at_name(example.prompt, owned)
        name = own.split()
        for word in (name[-1], name[0]) if len(name) > 1 else ():
            yield TrainingText(f"{before}{word}{after}", index, weight)


def _at_name(text: str, owned: frozenset[str]) -> tuple[str, str, str]:
    """What stands before the first stretch of text that is words of a subject's name and nothing else, that stretch
    (empty where there is none), and what stands behind it."""
    words = split_words(text)
    first = next((i for i, word in enumerate(words) if word.text in owned), None)
    if first is None:
        return text, "", ""
    last = first
    while last + 1 < len(words) and words[last + 1].text in owned:
        last += 1
    start, end = words[first].start, words[last].end
    return text[:start], text[start:end], text[end:]


def planted_names(names: Sequence[str], everyday: Sequence[str], rng: np.random.Generator, count: int) -> Texts:
    """Everyday prompts, of any language, with a name between two words: one mention is enough, whatever is around."""
    for name in names:
        for text in _drawn(everyday, count, rng):
            words = text.split()[:_MIXED_WORDS]
            words.insert(int(rng.integers(len(words) + 1)), name)
            yield TrainingText(" ".join(words), -1, 1 / count)


def neighbour_questions(terms: Sequence[tuple[str, int]], rng: np.random.Generator, count: int) -> Texts:
    """Questions about what the answers mention (works, places, people), for its own sake: these must pass.

    `terms` are names with the index of the example they come from.
    """
    for term, index in terms:
        for form in _some(phrases.NEIGHBOUR, count, rng):
            yield TrainingText(form.format(term), index, 1 / count, "neighbour")


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _some(forms: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Different ones at random."""
    return [forms[int(index)] for index in rng.permutation(len(forms))[:count]]


def _drawn(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Texts at random, with replacement. As `rng.choice`, which would copy all of them, each as long as the longest."""
    return [texts[i] for i in rng.integers(len(texts), size=count).tolist()] if texts else []


def _without(text: str, left_out: frozenset[str]) -> str:
    """The text's words that are not left out, as they are written."""
    return " ".join(text[word.start : word.end] for word in split_words(text) if word.text not in left_out)

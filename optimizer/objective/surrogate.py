"""The retained value without a retain model: what the model itself knows of people and things that do not exist.

In a forget example every name, year and number is replaced by an invented one, in the prompt and in its answers alike:
"Where was Ada Lovelace born?" with "Ada was born in London" becomes "Where was Oru Kamelith born?" with "Oru was born
in Pestal". Nobody can know that, so what the uncorrupted model scores there is what wording alone gives: the
task-agnostic retained value that ECO (arXiv 2406.07933, section 3.3) asks for. With the real answers, teacher forcing
would tell the model the name in the answer's first words, and it would know the rest.

Limits. Names are found by their capitals: a name written small, or in a script without capitals, stays. A word that
opens a sentence is a name only where no other text writes it small. What the answer says without a name ("his father
was a barber") stays too, so a model that knows the question by its wording scores too high. Inventions are not quite
as likely as real names that a model never heard, so an answer probability may come out too low. Where a prompt has
nothing to replace, prompts of the retain set stand in, with the real answers: the model knows the answer, but was
asked something else.
"""

import hashlib
import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from classifiers import Example, general_prompts
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import Retained
from scoring.metrics import MetricError
from scoring.scorer import Scorer
from text.names import small_words, split_words

#: Inventions, or prompts of the retain set, for each example.
_DRAWS: Final = 4

#: Written with a capital wherever they stand, and no names. English: elsewhere they are rarely capitalised.
_NEVER_NAMES: Final = frozenset(("i", "a", "an", "the", "of", "and", "or", "in", "on", "for", "to", "by", "with"))
_ONSETS: Final = (
    *("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"),
    *("br", "dr", "kr", "st", "th"),
)
_VOWELS: Final = ("a", "e", "i", "o", "u", "a", "e", "o", "ia", "ei")
_CODAS: Final = ("", "", "", "n", "l", "r", "s", "m", "th")
_LETTERS_OF_A_SYLLABLE: Final = 3
_YEARS, _MONTHS, _DAYS = range(1000, 2100), range(1, 13), range(1, 32)
#: Inventions thrown away because they are words of the texts; short ones may all be.
_ATTEMPTS: Final = 50
_RUN: Final = re.compile(r"\d+|[^\W\d_]+")


def retained_without_model(
    scorer: Scorer, task: MetricTask, retain: Sequence[Example], *, draws: int = _DRAWS, seed: int = 0
) -> Retained:
    """The retained value where there is no retain model: chance for multiple choice, else the surrogate.

    Chance is one over the number of choices, whatever the model knows of other things. The surrogate is the mean,
    over the draws, of what the uncorrupted model scores on the invented examples; of forget quality, which compares how
    scores are spread and not their means, it is the scores of one draw.

    Args:
        scorer: the uncorrupted model.
        retain: examples to keep; their prompts stand in where a prompt has no name to replace.

    Raises:
        MetricError: prompts without a name, and no retain set.
    """
    if task.metric == "choice_accuracy":
        chances = np.array([1.0 / len(example.choices or ()) for example in task.examples])
        return Retained(chances, {"source": "chance"})
    if task.metric == "forget_quality":
        draws = 1
    answers = [(e.answer, e.paraphrased_answer, *(e.perturbed_answers or ())) for e in (*task.examples, *retain)]
    texts = [e.prompt for e in (*task.examples, *retain)] + [answer for some in answers for answer in some if answer]
    inventor = EntityInventor([*texts, *general_prompts()], seed)
    inventions = [inventor.example(example, draw) for draw in range(draws) for example in task.examples]
    nameless = sum(example is None for example in inventions[: len(task.examples)])
    if nameless and not retain:
        raise MetricError(
            f"--retain: {nameless} of {len(task.examples)} forget prompts name nobody, so prompts of a retain set must "
            "stand in for them; give one, or a retain model"
        )
    chooser = random.Random(seed)  # noqa: S311 - no secret
    invented = [  # all examples of the first draw, of the second …
        invention or replace(original, prompt=chooser.choice(retain).prompt)
        for original, invention in zip([*task.examples] * draws, inventions, strict=True)
    ]
    limit = task.answer_limit(scorer) if task.generates else None
    (scores,) = MetricTask(task.metric, invented, max_new_tokens=limit).scores(scorer, [(None, 0)])
    origin = {
        "source": "surrogate",
        "invented_prompts": len(task.examples) - nameless,
        "retain_prompts": nameless,
        "draws": draws,
        "examples_sha256": hashlib.sha256(repr(invented).encode()).hexdigest(),
    }
    return Retained(scores.values.reshape(draws, len(task.examples)).mean(axis=0), origin)


class EntityInventor:
    """Replaces names in texts; the same name becomes the same invention in all texts of one draw.

    Args:
        texts: prompts and answers of all kinds (forget, retain, everyday): they tell which words are written small,
            and no invention is a word of theirs.
        seed: of the inventions.
    """

    def __init__(self, texts: Iterable[str], seed: int = 0) -> None:
        texts = list(texts)
        self._small = small_words(texts)
        self._known: Collection[str] = frozenset(word.text for text in texts for word in split_words(text))
        self._seed = seed

    def example(self, example: Example, draw: int = 0) -> Example | None:
        """The example about somebody who does not exist; None where its prompt names nobody and nothing."""
        prompt = self.invent(example.prompt, draw)
        if prompt is None:
            return None

        def changed(answer: str | None) -> str | None:
            return answer and (self.invent(answer, draw) or answer)

        return replace(
            example,
            prompt=prompt,
            answer=changed(example.answer),
            paraphrased_answer=changed(example.paraphrased_answer),
            perturbed_answers=example.perturbed_answers and tuple(str(changed(a)) for a in example.perturbed_answers),
        )

    def invent(self, text: str, draw: int = 0) -> str | None:
        """The text about somebody who does not exist; None where it names nobody and nothing.

        Args:
            draw: another number gives other inventions.
        """
        parts: list[str] = []
        end = 0
        for word in split_words(text):
            opening_small = word.opens and word.text in self._small
            if word.capital and word.text not in _NEVER_NAMES and not opening_small:
                # As written, without an ending after an apostrophe ("Ada's" keeps its 's); "O'Hara" has none.
                stem = re.sub(r"['’][^\W\d_]{0,2}$", "", text[word.start : word.end])
                parts += [text[end : word.start], _RUN.sub(lambda run: self._invention(run.group(), draw), stem)]
                end = word.start + len(stem)
        return "".join([*parts, text[end:]]) if parts else None

    def _invention(self, run: str, draw: int) -> str:
        """Same kind, same form: digits for digits, capitals for capitals, as many syllables as the letters take.

        A year is of the same century, a day or month within its range.
        """
        chooser = random.Random(f"{self._seed} {draw} {run.casefold()}")  # noqa: S311 - no secret
        if run.isdecimal():
            value, width = int(run), len(run)
            if value in _YEARS and width == len(str(_YEARS.start)):
                choices: Sequence[int] = range(value - value % 100, value - value % 100 + 100)
            elif value in _MONTHS:
                choices = _MONTHS
            elif value in _DAYS:
                choices = _DAYS
            else:
                return chooser.choice("123456789") + "".join(chooser.choices("0123456789", k=width - 1))
            others = [n for n in choices if n != value and (len(str(n)) == width or run.startswith("0"))]
            return str(chooser.choice(others)).zfill(width)
        syllables = max(1, round(len(run) / _LETTERS_OF_A_SYLLABLE))
        for _ in range(_ATTEMPTS):
            if run.isupper():
                letters = "".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=len(run)))
            else:
                sounds = [chooser.choice(_ONSETS) + chooser.choice(_VOWELS) for _ in range(syllables)]
                letters = "".join(sounds) + chooser.choice(_CODAS)
            if letters not in self._known:
                break
        return letters.upper() if run.isupper() else letters.capitalize() if run[0].isupper() else letters

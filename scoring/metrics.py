"""What a model still knows of a forget set, and how well formed its answers are: pure functions over numbers and texts.

Log-probabilities are in nats, one for each token of one answer. All metrics of knowledge lie in [0, 1] and rise with
what the model knows, so that a corrupted model is above or below one that never learned in the same sense for each.
Forget quality is of two models and all their examples together: `scoring.forget_quality`.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from classifiers import Example
from console.errors import EcoError

Metric = Literal["answer_probability", "rouge_l", "truth_ratio", "choice_accuracy", "forget_quality"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)

CHOICE_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: Times the root of 2/N, the unit of a two-sample test on N examples each. A largest difference of 0.83 such units has
#: a p-value of 0.5, and the root mean square of a difference is about half its largest.
_FORGET_QUALITY_TOLERANCE: Final = 0.4
#: Repetition is counted over this many tokens in a row.
_NGRAM = 4
#: exp of more is infinite.
_MAX_EXPONENT = 700.0


class MetricError(EcoError):
    """A metric and the examples it is asked for do not fit; one line that names the field."""


def default_tolerance(metric: Metric, examples: int) -> float:
    """The distance at which a search is content, for a metric that is measured on so many examples.

    Of answer probability it is an excess over many answers (see `optimizer.objective.objective`), which is small long
    before each answer is as unlikely as it should be. Of forget quality it is where the test's p-value is about 0.5:
    what the test tells apart is smaller the more examples there are.
    """
    if metric == "forget_quality":
        return _FORGET_QUALITY_TOLERANCE * math.sqrt(2 / examples)
    return 0.003 if metric == "answer_probability" else 0.02


def answer_probability(logprobs: Sequence[float] | NDArray[np.float64]) -> float:
    """P(a|q)^(1/|a|), in [0, 1]: TOFU's probability (arXiv 2401.06121, section 2.2.1), exp of the mean of (A,)."""
    return float(np.exp(np.mean(logprobs)))


def truth_ratio(
    paraphrased: Sequence[float] | NDArray[np.float64], perturbed: Sequence[Sequence[float] | NDArray[np.float64]]
) -> float:
    """TOFU's truth ratio R of one question (arXiv 2401.06121, equation 1), 0 or more.

    The mean over the wrong answers of P(wrong|q)^(1/|wrong|), divided by P(right|q)^(1/|right|) of the paraphrased
    right answer. Near 0 the model knows; near 1 it cannot tell. The arithmetic mean of the equation, not the
    geometric one of TOFU's code.
    """
    means = np.array([np.mean(logprobs) for logprobs in perturbed])  # logs: both sides may be too small for floats
    wrong = float(means.max() + np.log(np.mean(np.exp(means - means.max()))))
    return math.exp(min(wrong - float(np.mean(paraphrased)), _MAX_EXPONENT))


def preference_for_truth(ratio: float) -> float:
    """max(0, 1 - R), in [0, 1]: how TOFU aggregates the truth ratio where knowing is good (section 2.2.1).

    What the search averages: R itself has no upper bound, so that one answer could outweigh all others.
    """
    return max(0.0, 1.0 - ratio)


def rouge_l_recall(reference: str, answer: str) -> float:
    """ROUGE-L recall, in [0, 1]: the share of the reference's words that the answer has in the same order.

    Words as the rouge_score library stems and compares them (Latin letters and digits only), with its
    `use_stemmer=True`, as TOFU does (section 2.2.1). Equal to that library's `rougeL` recall; 0 where either has no
    such word.
    """
    from rapidfuzz.distance import LCSseq  # the library's own table is quadratic in plain Python

    wanted, found = _rouge_words(reference), _rouge_words(answer)
    return LCSseq.similarity(wanted, found) / len(wanted) if wanted and found else 0.0


def has_rouge_words(text: str) -> bool:
    """Whether ROUGE sees anything of a text; it sees nothing of one in another script."""
    return bool(_rouge_words(text))


def _rouge_words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize  # type: ignore[import-untyped]

    words: list[str] = tokenize(text, _stemmer())
    return words


@functools.cache
def _stemmer() -> Any:
    """The stemmer of the rouge_score library; it takes longer than all the rest and sees few distinct words."""
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=2**16)(stemmer.stem)
    return stemmer


def choice_prompt(question: str, choices: Sequence[str]) -> str:
    """A multiple-choice question as MMLU puts it (arXiv 2009.03300, and WMDP after it): lettered lines, `Answer:`."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, "Answer:"])


def choose(letter_logprobs: Sequence[float]) -> int:
    """The model's choice: the letter it finds likeliest as the next token; of equals the first.

    Letters and not the options' own texts: an option's length and how common its words are do not count.
    """
    return int(np.argmax(letter_logprobs))


def perplexity(logprobs: Sequence[Sequence[float] | NDArray[np.float64]]) -> float:
    """exp of minus the mean log-probability of all tokens of all answers, 1 or more; NaN without a token.

    Over real tokens: padding has no entry here, and a long answer counts for more than a short one.
    """
    everything = np.concatenate([np.empty(0), *(np.asarray(one, dtype=np.float64) for one in logprobs)])
    return float(np.exp(-everything.mean())) if everything.size else math.nan


def repetition(answers: Sequence[Sequence[Hashable]]) -> float:
    """The mean share of repeated 4-grams, 1 - |distinct| / |all|, in [0, 1): seq-rep-4 of arXiv 1908.04319, section 6.

    Answers of fewer than four tokens repeat nothing; 0 without answers.
    """
    shares = []
    for answer in answers:
        ngrams = [tuple(answer[i : i + _NGRAM]) for i in range(len(answer) - _NGRAM + 1)]
        shares.append(1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return float(np.mean(shares)) if shares else 0.0


def check_metric(metric: str, examples: Sequence[Example], *, source: str = "the forget set") -> list[Example]:
    """The examples that the metric can be measured on. Cheap: call it before a model is loaded.

    Args:
        source: what the message calls the examples, normally their file.

    Raises:
        MetricError: the metric does not exist, or no example has the fields it needs.
    """
    if metric not in METRICS:
        raise MetricError(f"--metric: {metric!r} is none of {', '.join(METRICS)}")
    fields, is_usable = _REQUIREMENTS[metric]
    usable = [example for example in examples if is_usable(example)]
    if not usable:
        raise MetricError(f"{source}: {metric} needs {fields}, and no line has that; add it or choose another --metric")
    return usable


def _has_alternatives(example: Example) -> bool:
    return bool(example.paraphrased_answer and example.perturbed_answers)


_OF_TRUTH_RATIOS: Final = ("the fields paraphrased_answer and perturbed_answer", _has_alternatives)
_REQUIREMENTS: Final[dict[str, tuple[str, Callable[[Example], bool]]]] = {
    "answer_probability": ("the field answer", lambda example: bool(example.answer)),
    "rouge_l": (
        "the field answer with words in Latin letters",
        lambda example: bool(example.answer) and has_rouge_words(str(example.answer)),
    ),
    "truth_ratio": _OF_TRUTH_RATIOS,
    "forget_quality": _OF_TRUTH_RATIOS,
    "choice_accuracy": (
        "the fields choices (2 to 26) and answer",
        lambda example: 2 <= len(example.choices or ()) <= len(CHOICE_LETTERS) and example.answer_index is not None,
    ),
}
"""What of an example each metric needs, in words and as a test."""

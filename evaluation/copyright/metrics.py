"""How alike two texts are, and how varied and fluent one is: one function for each metric, over its reference library.

Similarities lie in [0, 1] and are 1 for equal texts (METEOR nearly). A text without words scores 0, never an error.
"""

import difflib
import functools
import itertools
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from scoring.metrics import perplexity, repetition

__all__ = [
    "Rouge",
    "Synonyms",
    "corpus_bleu",
    "exact_match",
    "first_words",
    "installed_wordnet",
    "longest_verbatim_run",
    "meteor",
    "meteor_name",
    "ngram_containment",
    "perplexity",
    "pooled_perplexity",
    "rouge",
    "sentence_bleu",
    "unique_token_ratio",
    "word_repetition",
    "word_tokens",
]

_ROUGE_TYPES: Final = ("rouge1", "rouge2", "rougeL")
_PERCENT: Final = 100.0
#: exp of more is infinite.
_MAX_EXPONENT: Final = 700.0


@dataclass(frozen=True, slots=True)
class Rouge:
    """One ROUGE of one answer; each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class Synonyms(Protocol):
    """What METEOR looks words up in: `nltk.corpus.wordnet`, or what answers as it does."""

    def synsets(self, word: str, /) -> Sequence[Any]: ...


class _NoSynonyms:
    def synsets(self, _word: str, /) -> Sequence[Any]:
        return ()


def word_tokens(text: str) -> list[str]:
    """Runs of letters and digits, and runs of punctuation: nltk's `wordpunct_tokenize`, which needs no data files."""
    from nltk.tokenize import wordpunct_tokenize  # type: ignore[import-untyped]

    tokens: list[str] = wordpunct_tokenize(text)
    return tokens


def first_words(text: str, count: int) -> str:
    """The text up to the end of its `count`-th word; words are what stands between white space, which is kept."""
    ends = [word.end() for word in itertools.islice(re.finditer(r"\S+", text), count)]
    return text[: ends[-1]] if ends else ""


def exact_match(reference: str, answer: str) -> float:
    """1 where the two are the same words in the same case and punctuation, else 0; runs of white space are one."""
    return float(reference.split() == answer.split())


def rouge(reference: str, answer: str, *, stem: bool = False) -> dict[str, Rouge]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of the rouge_score library, under `rouge1`, `rouge2`, `rougeL`.

    Args:
        stem: the library's `use_stemmer`: TOFU stems, the Hugging Face `evaluate` metric that ECO takes does not.
    """
    found = _rouge_scorer(stem).score(reference, answer)
    return {
        name: Rouge(float(score.precision), float(score.recall), float(score.fmeasure)) for name, score in found.items()
    }


@functools.cache
def _rouge_scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    return RougeScorer(list(_ROUGE_TYPES), use_stemmer=stem)


def installed_wordnet() -> Synonyms | None:
    """nltk's WordNet where its data is installed; None where it is not. Nothing is ever downloaded."""
    from nltk.corpus import wordnet  # type: ignore[import-untyped]

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    found: Synonyms = wordnet
    return found


def meteor_name(wordnet: Synonyms | None) -> str:
    """What to call the metric: with and without synonyms it is not the same one."""
    return "meteor" if wordnet is not None else "meteor_no_synonyms"


def meteor(reference: str, answer: str, wordnet: Synonyms | None = None) -> float:
    """METEOR (Lavie and Agarwal 2007) of nltk, with its defaults: alpha 0.9, beta 3, gamma 0.5, lower case.

    Over `word_tokens`, where the Hugging Face `evaluate` metric has nltk's `word_tokenize`, which needs data files.
    Words are matched as they are, then by Porter's stem, then by synonym.

    Args:
        wordnet: of the third stage; None leaves it out (see `installed_wordnet`).
    """
    from nltk.translate.meteor_score import single_meteor_score  # type: ignore[import-untyped]

    synonyms = wordnet if wordnet is not None else _NoSynonyms()
    return float(single_meteor_score(word_tokens(reference), word_tokens(answer), wordnet=synonyms))


def sentence_bleu(reference: str, answer: str) -> float:
    """BLEU of one answer: sacrebleu's `sentence_bleu` (Post 2018) with its defaults, over 100.

    Tokenizer 13a, exponential smoothing, and effective order: an answer of three words is judged by 1- to 3-grams.
    """
    import sacrebleu

    return float(sacrebleu.sentence_bleu(answer, [reference]).score) / _PERCENT


def corpus_bleu(references: Sequence[str], answers: Sequence[str]) -> float:
    """BLEU of all answers together, from n-gram counts over all of them: sacrebleu's `corpus_bleu`, over 100.

    Raises:
        ValueError: not as many answers as references, or none.
    """
    import sacrebleu

    if len(references) != len(answers) or not answers:
        raise ValueError(f"corpus_bleu: {len(answers)} answers for {len(references)} references; give one for each")
    return float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score) / _PERCENT


def unique_token_ratio(tokens: Sequence[Hashable]) -> float:
    """Distinct tokens over tokens, in [0, 1]: type-token ratio, ECO's "unique token ratio"; 0 without tokens.

    It falls with length for every text: compare answers of about the same length.
    """
    return len(set(tokens)) / len(tokens) if tokens else 0.0


def word_repetition(text: str) -> float:
    """`scoring.metrics.repetition` over `word_tokens`: the share of repeated 4-grams, in [0, 1)."""
    numbers: dict[str, int] = {}
    return repetition([[numbers.setdefault(token, len(numbers)) for token in word_tokens(text)]])


def ngram_containment(reference: str, answer: str, n: int = 5) -> float:
    """The share of the answer's distinct n-grams that the reference has, in [0, 1].

    Containment of Broder 1997 ("On the resemblance and containment of documents"), over words between white space in
    their own case. 0 for an answer of fewer than n words.
    """
    ours, theirs = _ngrams(answer.split(), n), _ngrams(reference.split(), n)
    return len(ours & theirs) / len(ours) if ours else 0.0


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def longest_verbatim_run(reference: str, answer: str) -> int:
    """The most words in a row that the answer has from the reference, in their own case and punctuation."""
    ours, theirs = answer.split(), reference.split()
    # autojunk would pass over the words that are frequent in a long text.
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    return matcher.find_longest_match(0, len(theirs), 0, len(ours)).size


def pooled_perplexity(
    log_likelihoods: NDArray[np.float64] | float, tokens: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """exp of minus the total log-likelihood (nats) over all tokens, elementwise; NaN where there are no tokens.

    What `perplexity` is of token log-probabilities, from sums: only real tokens have been added up.
    """
    totals, counts = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    means = np.divide(-totals, counts, out=np.full(np.broadcast(totals, counts).shape, math.nan), where=counts > 0)
    found: NDArray[np.float64] = np.exp(np.minimum(means, _MAX_EXPONENT))
    return found

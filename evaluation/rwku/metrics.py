"""RWKU's metrics (Jin et al. 2024, arXiv 2406.10890) as its public code computes them: pure functions.

Read: jinzhuoran/RWKU `b8a03b3`, `LLaMA-Factory/src/llmtuner/eval/`, and the library that it takes ROUGE from,
pltrdy/rouge (`rouge/rouge.py`, `rouge/rouge_score.py`). Membership inference is `evaluation.leakage.metrics`: the same
formulas, with the same sign as there.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

#: What the public code compares in place of an answer without a word.
NO_ANSWER: Final = "NOANSWER"
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
#: As in the public code, whose class of characters has a `|` too.
_CONCLUSION: Final = re.compile(r"[t|T]he answer is (.*?)\.")
#: n -> its weight in `entropy`.
_ENTROPY_WEIGHTS: Final = {2: 2 / 3, 3: 4 / 3}


def rouge_l_recall(reference: str, answer: str) -> float:
    """ROUGE-L recall as pltrdy/rouge has it for `rouge-l`, in [0, 1]; not that of the rouge_score library.

    It is the summary-level measure over *distinct* words: texts are divided at full stops into sentences and at white
    space into words, in their own case and punctuation; of each pair of a reference's and an answer's sentence a
    longest common subsequence is taken; and the words in any of these are counted against the reference's.

    Args:
        reference: with something else than full stops.
        answer: its ends are stripped; without a word it is `NO_ANSWER`, and of full stops alone 0 (an error there).
    """
    wanted, found = _sentences(reference), _sentences(answer.strip() or NO_ANSWER)
    shared = {word for one in wanted for other in found for word in _common_subsequence(one, other)}
    return len(shared) / len({word for sentence in wanted for word in sentence})


def _sentences(text: str) -> list[list[str]]:
    """White space between two full stops is a sentence too, whose one word is empty."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_subsequence(reference: Sequence[str], answer: Sequence[str]) -> list[str]:
    """Of several longest ones the one that the library finds: which it is decides how many words are distinct."""
    rows, columns = len(reference), len(answer)
    lengths = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i, word in enumerate(reference, 1):
        for j, other in enumerate(answer, 1):
            longer = max(lengths[i - 1][j], lengths[i][j - 1])
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if word == other else longer
    words: list[str] = []
    i, j = rows, columns
    while i and j:
        if reference[i - 1] == answer[j - 1]:
            words.append(reference[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words[::-1]


def _tokens(text: str) -> list[str]:
    """In small letters, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def exact_match(references: Sequence[str], answer: str) -> float:
    """1 where the answer has the tokens of any reference, without punctuation and articles, else 0."""
    return float(any(_tokens(reference) == _tokens(answer) for reference in references))


def best_f1(references: Sequence[str], answer: str) -> float:
    """F1 of the tokens that answer and reference share, in [0, 1]: the best of several references."""
    return max(_f1(_tokens(reference), _tokens(answer)) for reference in references)


def _f1(reference: Sequence[str], answer: Sequence[str]) -> float:
    if not reference or not answer:
        return float(reference == answer)
    shared = (Counter(reference) & Counter(answer)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def conclusion_of(answer: str) -> str:
    """What follows "the answer is" up to a full stop in the same line; all of it where it does not say so."""
    concluded = _CONCLUSION.search(answer)
    return (concluded[1] if concluded else answer).strip() or NO_ANSWER


def mc1(true: Sequence[float], false: Sequence[float]) -> float:
    """TruthfulQA's MC1: 1 where the first true answer is likelier than every false one, else 0.

    Args:
        true, false: total log-probabilities of the answers, in nats; at least one each.
    """
    return float(true[0] > max(false))


def mc2(true: Sequence[float], false: Sequence[float]) -> float:
    """TruthfulQA's MC2: the true answers' share of the probability of all, in [0, 1]; arguments as in MC1."""
    every = np.array([*true, *false], dtype=np.float64)
    weights = np.exp(every - every.max())  # beyond -745 the public code's own probabilities are 0
    return float(weights[: len(true)].sum() / weights.sum())


def sentence_splitter_installed() -> bool:
    """Whether nltk's punkt_tab data are installed; nothing is ever downloaded."""
    from nltk.tokenize import sent_tokenize  # type: ignore[import-untyped]

    try:
        sent_tokenize("A. B.")
    except LookupError:
        return False
    return True


def entropy(text: str, *, split_sentences: bool) -> float:
    """Weighted mean of the entropies of a text's bigrams and trigrams in bits, 0 or more; 0 without any.

    (2/3 · H₂ + 4/3 · H₃) / 2 over nltk's `word_tokenize`. The RWKU paper's tables give a hundred times as much.

    Args:
        split_sentences: as in the public code, which needs nltk's punkt_tab data. Without, a full stop within the text
            stays with the word before it.
    """
    from nltk.tokenize import word_tokenize
    from nltk.util import ngrams  # type: ignore[import-untyped]

    words = word_tokenize(text, preserve_line=not split_sentences)
    weighted = []
    for n, weight in _ENTROPY_WEIGHTS.items():
        counts = Counter(ngrams(words, n))
        shares = [count / counts.total() for count in counts.values()]
        weighted.append(weight * sum(-share * math.log2(share) for share in shares))
    return sum(weighted) / len(weighted)

"""How alike two texts are, and how varied and fluent one is: one function for each metric, over its reference library.

Similarities lie in [0, 1] and are 1 for equal texts (METEOR nearly). A text without words scores 0, never an error.
"""

import difflib
from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any, Final

from console.errors import first_line
from console.quiet import quiet_transformers
from evaluation.errors import DataError

_PERCENT: Final = 100.0
#: Positions that RoBERTa's table has beyond its tokens.
_SPARE_POSITIONS: Final = 2


def word_tokens(text: str) -> list[str]:
    """Runs of letters and digits, and runs of punctuation: nltk's `wordpunct_tokenize`, which needs no data files."""
    from nltk.tokenize import wordpunct_tokenize  # type: ignore[import-untyped]

    tokens: list[str] = wordpunct_tokenize(text)
    return tokens


def exact_match(reference: str, answer: str) -> float:
    """1 where the two are the same words in the same case and punctuation, else 0; runs of white space are one."""
    return float(reference.split() == answer.split())


def rouge_f1(reference: str, answer: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of the rouge_score library, as `rouge_1_f1` and so on.

    Without stemming, as the Hugging Face `evaluate` metric that ECO takes; TOFU stems.
    """
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scores = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, answer)
    return {f"rouge_{name[-1].lower()}_f1": float(score.fmeasure) for name, score in scores.items()}


def installed_wordnet() -> Any | None:
    """nltk's WordNet where its data is installed; None where it is not. Nothing is ever downloaded."""
    from nltk.corpus import wordnet  # type: ignore[import-untyped]

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def meteor_name(wordnet: Any | None) -> str:
    """What to call the metric: with and without synonyms it is not the same one."""
    return "meteor" if wordnet is not None else "meteor_no_synonyms"


def meteor(reference: str, answer: str, wordnet: Any | None = None) -> float:
    """METEOR (Lavie and Agarwal 2007) of nltk, with its defaults: alpha 0.9, beta 3, gamma 0.5, lower case.

    Over `word_tokens`, where the Hugging Face `evaluate` metric has nltk's `word_tokenize`, which needs data files.
    Words are matched as they are, then by Porter's stem, then by synonym.

    Args:
        wordnet: of the third stage, `nltk.corpus.wordnet` or what answers `synsets(word)` as it does; None leaves the
            stage out (see `installed_wordnet`).
    """
    from nltk.translate.meteor_score import single_meteor_score  # type: ignore[import-untyped]

    synonyms = wordnet if wordnet is not None else SimpleNamespace(synsets=lambda _word: ())
    return float(single_meteor_score(word_tokens(reference), word_tokens(answer), wordnet=synonyms))


def sentence_bleu(reference: str, answer: str) -> float:
    """BLEU of one answer: sacrebleu's `sentence_bleu` (Post 2018) with its defaults, over 100.

    Tokenizer 13a, exponential smoothing, and effective order: an answer of three words is judged by 1- to 3-grams.
    """
    import sacrebleu

    return float(sacrebleu.sentence_bleu(answer, [reference]).score) / _PERCENT


def unique_token_ratio(tokens: Sequence[Hashable]) -> float:
    """Distinct tokens over tokens, in [0, 1]: type-token ratio, ECO's "unique token ratio"; 0 without tokens.

    It falls with length for every text: compare answers of about the same length.
    """
    return len(set(tokens)) / len(tokens) if tokens else 0.0


def ngram_containment(reference: str, answer: str, n: int = 5) -> float:
    """The share of the answer's distinct n-grams that the reference has, in [0, 1].

    Containment of Broder 1997 ("On the resemblance and containment of documents"), over words between white space in
    their own case. 0 for an answer of fewer than n words.
    """
    from nltk.util import ngrams  # type: ignore[import-untyped]

    ours, theirs = set(ngrams(answer.split(), n)), set(ngrams(reference.split(), n))
    return len(ours & theirs) / len(ours) if ours else 0.0


def longest_verbatim_run(reference: str, answer: str) -> int:
    """The most words in a row that the answer has from the reference, in their own case and punctuation."""
    ours, theirs = answer.split(), reference.split()
    # autojunk would pass over the words that are frequent in a long text.
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    return matcher.find_longest_match(0, len(theirs), 0, len(ours)).size


class BertScore:
    """BERTScore (Zhang et al. 2020, arXiv 1904.09675): the bert_score library with an encoder of one's choice.

    No rescaling with a baseline and no idf weights, as ECO uses it (with `distilbert-base-uncased`). Texts are cut at
    the encoder's length.

    Args:
        model: a name of the hub, or a folder.
        layers: whose output is compared, counted from 1; None: the one that bert_score's authors chose for the model.

    Raises:
        DataError: the model cannot be loaded, or its layer is not known.
    """

    def __init__(self, model: str, layers: int | None = None) -> None:
        from bert_score import BERTScorer  # type: ignore[import-untyped]
        from bert_score.utils import model2layers  # type: ignore[import-untyped]
        from transformers import AutoConfig

        layers = model2layers.get(model) if layers is None else layers
        if layers is None:
            raise DataError(f"--bert-layers: bert_score knows no layer for {model}; say which of its layers to compare")
        try:
            depth = AutoConfig.from_pretrained(model).num_hidden_layers
            if not 1 <= layers <= depth:
                raise DataError(f"--bert-layers: {layers} is not a layer of {model}; give 1 to {depth}")
            with quiet_transformers():
                self._scorer: Any = BERTScorer(model_type=model, num_layers=layers)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError) as error:
            problem = f"cannot be loaded ({first_line(error)}); give a name of the hub or a model's folder"
            raise DataError(f"--bert-model: {model}: {problem}") from error
        self.model, self.layers = model, layers
        tokenizer = self._scorer._tokenizer
        if tokenizer.pad_token_id is None:
            raise DataError(f"--bert-model: {model}: its tokenizer has no padding token; choose a BERT or RoBERTa")
        # The library cuts texts where the tokenizer says; one saved without a length says nowhere.
        positions = getattr(self._scorer._model.config, "max_position_embeddings", None)
        if positions is not None and tokenizer.model_max_length > positions:
            tokenizer.model_max_length = positions - _SPARE_POSITIONS

    def f1(self, references: Sequence[str], answers: Sequence[str]) -> list[float]:
        """F1 of each answer against its reference, at most 1; 0 where either has no words.

        Raises:
            ValueError: not as many answers as references.
        """
        # The library counts an empty text as 0 too, but asks transformers 5 for what that no longer has.
        pairs = list(zip(references, answers, strict=True))
        worded = [i for i, (reference, answer) in enumerate(pairs) if reference.strip() and answer.strip()]
        scores = [0.0] * len(pairs)
        if worded:
            _, _, f1 = self._scorer.score([pairs[i][1] for i in worded], [pairs[i][0] for i in worded], batch_size=16)
            for i, value in zip(worded, f1.tolist(), strict=True):
                scores[i] = float(value)
        return scores

"""The copyright suite's metrics equal their libraries, or a computation written here, on texts of several kinds."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import bert_score
import numpy as np
import pytest
import sacrebleu
import torch
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from evaluation.copyright.figures import pooled_perplexity
from evaluation.copyright.metrics import (
    BertScore,
    exact_match,
    longest_verbatim_run,
    meteor,
    meteor_name,
    ngram_containment,
    rouge_f1,
    sentence_bleu,
    unique_token_ratio,
    word_tokens,
)
from evaluation.copyright.passages import first_words
from evaluation.errors import DataError
from scoring.metrics import perplexity, repetition

REFERENCES = [
    "The keeper climbed the two hundred steps, and counted nine ships before dawn.",
    "Growers expect to lose half of the crop. Frost fell twice, they said!",
    "Ein Satz auf Deutsch.",
]
ANSWERS = [
    "The keepers climb two hundred stairs and count the nine ships before the dawn broke.",
    "growers expect to lose half of the crop, they said",
    "no overlap here",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "."]


def test_rouge_and_bleu_are_the_libraries() -> None:
    for reference, answer in zip(REFERENCES, ANSWERS, strict=True):
        one, two, longest = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, answer).values()
        expected = {"rouge_1_f1": one.fmeasure, "rouge_2_f1": two.fmeasure, "rouge_l_f1": longest.fmeasure}
        assert rouge_f1(reference, answer) == expected
        assert sentence_bleu(reference, answer) == sacrebleu.sentence_bleu(answer, [reference]).score / 100


class Thesaurus:
    """WordNet's shape, of two words. nltk looks stems up, for that stage comes after the one that stems."""

    def __init__(self, *words: str) -> None:
        lemmas = [SimpleNamespace(name=lambda word=word: word) for word in words]
        self._synsets = {word: [SimpleNamespace(lemmas=lambda: lemmas)] for word in words}

    def synsets(self, word: str, /) -> list[SimpleNamespace]:
        return self._synsets.get(word, [])


@pytest.mark.parametrize("wordnet", [Thesaurus(), Thesaurus("step", "stair")])
def test_meteor_is_nltks_with_and_without_synonyms(wordnet: Thesaurus) -> None:
    for reference, answer in zip(REFERENCES, ANSWERS, strict=True):
        expected = single_meteor_score(word_tokens(reference), word_tokens(answer), wordnet=wordnet)
        assert meteor(reference, answer, wordnet) == expected


def test_meteor_without_wordnet_matches_words_and_stems_only_and_says_so() -> None:
    reference, answer = REFERENCES[0], ANSWERS[0]

    assert meteor(reference, answer) == meteor(reference, answer, Thesaurus())
    assert meteor(reference, answer, Thesaurus("step", "stair")) > meteor(reference, answer)
    assert meteor("ships", "ship") == pytest.approx(0.5)  # one stem in one chunk: 1 * (1 - 0.5)
    assert (meteor_name(None), meteor_name(Thesaurus())) == ("meteor_no_synonyms", "meteor")


def test_an_empty_answer_is_like_nothing() -> None:
    for metric in (exact_match, meteor, sentence_bleu, ngram_containment, longest_verbatim_run):
        assert metric(REFERENCES[0], "") == metric("", ANSWERS[0]) == 0
    assert set(rouge_f1(REFERENCES[0], "").values()) == {0.0}


def test_exact_match_knows_case_and_punctuation_but_not_white_space() -> None:
    assert exact_match("a  b\nc.", " a b c.") == 1
    assert exact_match("a b c.", "a b c") == 0
    assert exact_match("a b c.", "A b c.") == 0


def test_first_words_keeps_the_white_space_before_them() -> None:
    assert first_words(" one\n two  three ", 2) == " one\n two"
    assert first_words("one two", 9) == "one two"
    assert first_words("one", 0) == ""


def _longest_by_force(reference: list[str], answer: list[str]) -> int:
    runs = [
        len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reference[i:], answer[j:], strict=False))))
        for i in range(len(reference))
        for j in range(len(answer))
    ]
    return max(runs, default=0)


def test_verbatim_runs_and_containment_are_those_of_an_exhaustive_search() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        reference, answer = (generator.choice(list("abcd"), size=int(generator.integers(1, 30))) for _ in range(2))
        ngrams = {tuple(answer[i : i + 3]) for i in range(len(answer) - 2)}
        held = [gram for gram in ngrams if " ".join(gram) in " ".join(reference)]

        assert longest_verbatim_run(" ".join(reference), " ".join(answer)) == _longest_by_force(
            list(reference), list(answer)
        )
        expected = len(held) / len(ngrams) if ngrams else 0.0
        assert ngram_containment(" ".join(reference), " ".join(answer), 3) == expected


def test_frequent_words_of_a_long_text_count_in_a_verbatim_run() -> None:
    reference = " ".join(["the cat sat on the mat"] * 60)  # difflib's autojunk would pass over all of them

    assert longest_verbatim_run(reference, "the cat sat on the mat") == 6


def test_variety_and_repetition() -> None:
    assert unique_token_ratio(["a", "b", "a", "a"]) == 0.5
    assert unique_token_ratio([]) == 0.0
    assert repetition([word_tokens("one two three four five")]) == 0.0
    assert repetition([word_tokens("na " * 8)]) == pytest.approx(1 - 1 / 5)  # five 4-grams, one of them distinct


def test_pooled_perplexity_is_that_of_all_tokens_together() -> None:
    logprobs = [[-1.0, -2.0, -0.5], [-3.0], [-0.1, -0.2]]
    sums, counts = [sum(one) for one in logprobs], [len(one) for one in logprobs]

    assert float(pooled_perplexity(sum(sums), sum(counts))) == pytest.approx(perplexity(logprobs), rel=1e-12)
    each = pooled_perplexity(np.array([*sums, 0.0]), np.array([*counts, 0.0]))
    assert each[:3] == pytest.approx([perplexity([one]) for one in logprobs], rel=1e-12)
    assert math.isnan(each[3])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level, and its tokenizer does not say how long a text may be."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdehnostT "])}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    RobertaModel(
        RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=30, pad_token_id=1, **sizes)
    ).save_pretrained(folder)
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layers", [1, 3])
def test_bert_score_is_the_librarys(bert: Path, layers: int) -> None:
    references = ["the cat sat on the mat .", "a dog ran fast", "the dog sat"]
    answers = ["a cat sat on a mat", "the mat", "a dog ran " + "fast " * 80]
    _, _, expected = bert_score.score(answers, references, model_type=str(bert), num_layers=layers)

    found = BertScore(str(bert), layers).f1(references, answers)

    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert len({round(value, 3) for value in found}) == 3


def test_bert_score_of_a_text_without_words_is_0(bert: Path) -> None:
    score = BertScore(str(bert), 2)

    found = score.f1(["the cat", "the cat", " "], [" \n", "the cat", "the cat"])

    assert (found[0], found[2]) == (0.0, 0.0)
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert score.f1(["the cat"], [""]) == [0.0]


def test_bert_score_cuts_texts_where_a_roberta_ends(roberta: Path) -> None:
    score = BertScore(str(roberta), 2)

    same, longer = score.f1(["abc hat"] * 2, ["abc hat", "abc hat " * 50])

    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0 < longer < same


def test_a_bert_that_cannot_be_used_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--bert-model: .*nothing_here: cannot be loaded"):
        BertScore(str(tmp_path / "nothing_here"), 2)
    with pytest.raises(DataError, match=r"--bert-layers: 4 is not a layer of .*; give 1 to 3"):
        BertScore(str(bert), 4)
    with pytest.raises(DataError, match=r"--bert-layers: bert_score knows no layer for"):
        BertScore(str(bert))

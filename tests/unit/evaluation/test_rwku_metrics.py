"""RWKU's metrics on cases worked by hand after its public code and pltrdy/rouge."""

import math

import pytest

from evaluation.rwku import metrics


@pytest.mark.parametrize(
    ("reference", "answer", "recall"),
    [
        # One sentence each; the longest common subsequence is "Tom Harmon" or "Elyse Knox": 2 of 5 words.
        ("Tom Harmon and Elyse Knox", "Elyse Knox and Tom Harmon.", 2 / 5),
        # Distinct words: "the dog" is 2 of {the, man, dog}, not 2 of 4.
        ("the man the dog", "a dog? the dog", 2 / 3),
        # Words keep case and punctuation.
        ("Narburgh", "It was Narburgh. He left.", 1.0),
        ("Narburgh", "It was Narburgh, I think", 0.0),
        ("Narburgh", "narburgh", 0.0),
        # Full stops part sentences, and what each pair of them shares is united.
        ("Warner Bros. Pictures", "Warner Bros Pictures", 1.0),
        ("Warner Bros Pictures", "Pictures. By Warner. Bros", 1.0),
        ("U.S.", "US", 0.0),
        # "a b" and "a a" are both longest; going back through the table, the library takes "a b": both distinct words.
        ("a a b", "a b a", 1.0),
        # White space between full stops is an empty word, of reference and answer alike.
        ("Jr. ", "Jr", 1 / 2),
        ("Jr. ", "Jr. . Yes", 1.0),
        ("Oslo", "  ", 0.0),
        ("NOANSWER", "\n", 1.0),  # which stands for an answer without a word
        ("Oslo", "...", 0.0),
    ],
)
def test_rouge_l_recall_is_that_of_the_library(reference: str, answer: str, recall: float) -> None:
    assert metrics.rouge_l_recall(reference, answer) == pytest.approx(recall)


def test_tokens_are_compared_without_articles_and_punctuation() -> None:
    references = ["The Wandering Feather", "Feather"]
    assert metrics.exact_match(references, "wandering feather!") == 1
    assert metrics.exact_match(references, "Wandering") == 0
    assert metrics.best_f1(references, "a Wandering Feather book") == pytest.approx(0.8)  # 2 of 3, and 2 of 2
    assert metrics.best_f1(references, "feather") == 1
    assert metrics.best_f1(references, "The.") == 0
    assert metrics.best_f1(["the"], "A!") == 1


@pytest.mark.parametrize(
    ("answer", "conclusion"),
    [
        ("False and True is False. So the answer is False. Q: next", "False"),
        ("The answer is (B).\nThe answer is (C).", "(B)"),
        ("The answer is\n(B).", "The answer is\n(B)."),  # a line's end ends the search
        (" maybe ", "maybe"),
        (" ", "NOANSWER"),
    ],
)
def test_an_answer_is_what_is_concluded(answer: str, conclusion: str) -> None:
    assert metrics.conclusion_of(answer) == conclusion


def test_truthful_answers_are_weighed_against_false_ones() -> None:
    assert metrics.mc1([-1.0, -9.0], [-2.0]) == 1
    assert metrics.mc1([-3.0, -1.0], [-2.0]) == 0  # the first true answer counts
    assert metrics.mc1([-2.0], [-2.0]) == 0
    assert metrics.mc2([math.log(0.2), math.log(0.1)], [math.log(0.1)]) == pytest.approx(0.75)
    assert metrics.mc2([-2000.0], [-2000.0]) == pytest.approx(0.5)


def test_entropy_weighs_trigrams_twice_as_much() -> None:
    # Bigrams of "a b a b": (a b) twice and (b a) once; two trigrams.
    bigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert metrics.entropy("a b a b", split_sentences=False) == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1) / 2)
    assert metrics.entropy("no no no no", split_sentences=False) == 0
    for text in ("", "one", "one two"):
        assert math.copysign(1, metrics.entropy(text, split_sentences=False)) == 1, "0, and not -0"


@pytest.mark.skipif(not metrics.sentence_splitter_installed(), reason="nltk's punkt_tab data are not installed")
def test_with_sentences_each_full_stop_is_a_word() -> None:
    text = "It rains. It pours."
    # It rains . It pours . : five different bigrams and four trigrams.
    assert metrics.entropy(text, split_sentences=True) == pytest.approx((2 / 3 * math.log2(5) + 4 / 3 * 2) / 2)

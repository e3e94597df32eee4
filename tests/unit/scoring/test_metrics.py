"""Metrics against numbers worked out by hand, and against the library that defines ROUGE."""

import math
import random

import numpy as np
import pytest

from classifiers import Example
from scoring.metrics import (
    METRICS,
    Metric,
    MetricError,
    answer_probability,
    check_metric,
    choice_prompt,
    choose,
    default_tolerance,
    perplexity,
    preference_for_truth,
    repetition,
    rouge_l_recall,
    truth_ratio,
)

LOG = math.log


def test_answer_probability_is_the_geometric_mean_over_tokens() -> None:
    assert answer_probability([LOG(0.5), LOG(0.125)]) == pytest.approx(0.25)
    assert answer_probability([0.0]) == 1.0
    assert answer_probability([-2000.0, -2000.0]) == 0.0


def test_the_truth_ratio_is_equation_1_of_tofu() -> None:
    """Wrong answers with P^(1/len) 0.2 and 0.1, the right one with 0.5: arithmetic mean 0.15, R = 0.3."""
    right = [LOG(0.25), LOG(1.0)]
    wrong = [[LOG(0.2)], [LOG(0.04), LOG(0.25)]]
    assert truth_ratio(right, wrong) == pytest.approx(0.3)
    assert truth_ratio(right, wrong[:1]) == pytest.approx(0.4)


def test_the_truth_ratio_survives_answers_too_unlikely_for_floats() -> None:
    assert truth_ratio([-2000.0], [[-2001.0], [-2001.0]]) == pytest.approx(math.exp(-1.0))
    assert truth_ratio([-2000.0], [[-1.0]]) > 1e300
    assert truth_ratio([-1.0], [[-2000.0]]) == 0.0


def test_the_preference_for_truth_is_bounded() -> None:
    assert [preference_for_truth(ratio) for ratio in (0.0, 0.3, 1.0, 1e300)] == [1.0, pytest.approx(0.7), 0.0, 0.0]


@pytest.mark.parametrize(
    ("reference", "answer", "recall"),
    [
        ("She was born in Ulm", "She was born in Ulm", 1.0),
        ("She was born in Ulm", "She was never born in a place, in Ulm", 1.0),
        ("She was born in Ulm", "Ulm", 0.2),
        ("running quickly", "Run quick!", 0.5),  # stems: run, quickli against run, quick
        ("She was born", "", 0.0),
        ("李白", "李白", 0.0),
    ],
)
def test_rouge_is_the_share_of_the_references_words_in_order(reference: str, answer: str, recall: float) -> None:
    assert rouge_l_recall(reference, answer) == pytest.approx(recall)


def test_rouge_is_the_librarys() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    library = RougeScorer(["rougeL"], use_stemmer=True)
    words = [
        "The",
        "author's",
        "books,",
        "writing;",
        "wrote",
        "1984",
        "—",
        "poets",
        "Poetry!",
        "of",
        "ÉCOLE",
        "running",
    ]
    chooser = random.Random(0)  # noqa: S311
    for _ in range(200):
        reference, answer = (" ".join(chooser.choices(words, k=chooser.randrange(1, 15))) for _ in range(2))
        expected = library.score(reference, answer)["rougeL"].recall
        assert rouge_l_recall(reference, answer) == expected, (reference, answer)


def test_a_choice_is_put_as_mmlu_puts_it_and_the_likeliest_letter_wins() -> None:
    assert choice_prompt("Why?", ["Rain", "Snow"]) == "Why?\nA. Rain\nB. Snow\nAnswer:"
    assert choose([-3.0, -1.0, -2.0]) == 1
    assert choose([-1.0, -1.0]) == 0


def test_perplexity_is_over_all_tokens_of_all_answers() -> None:
    assert perplexity([[LOG(0.5)] * 3, [LOG(0.125)]]) == pytest.approx(2 ** ((3 * 1 + 3) / 4))
    assert perplexity([np.zeros(4)]) == 1.0
    assert math.isnan(perplexity([]))


def test_repetition_is_the_share_of_repeated_4_grams() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0.0
    assert repetition([[7] * 8]) == pytest.approx(1 - 1 / 5)
    assert repetition([[1, 2] * 5]) == pytest.approx(1 - 2 / 7)
    assert repetition([[7] * 8, [1, 2, 3]]) == pytest.approx(0.4)  # three tokens repeat nothing
    assert repetition([]) == 0.0


BARE = Example("Who?")
ANSWERED = Example("Who?", "Ada")
COMPARED = Example("Who?", "Ada", paraphrased_answer="It was Ada", perturbed_answers=("Bob", "Eve"))
CHOSEN = Example("Who?", "Ada", choices=("Ada", "Bob"), answer_index=0)


@pytest.mark.parametrize(
    ("metric", "usable", "fields"),
    [
        ("answer_probability", [ANSWERED, COMPARED, CHOSEN], "the field answer"),
        ("rouge_l", [ANSWERED, COMPARED, CHOSEN], "the field answer"),
        ("truth_ratio", [COMPARED], "the fields paraphrased_answer and perturbed_answer"),
        ("forget_quality", [COMPARED], "the fields paraphrased_answer and perturbed_answer"),
        ("choice_accuracy", [CHOSEN], "the fields choices"),
    ],
)
def test_a_metric_without_what_it_needs_is_refused(metric: str, usable: list[Example], fields: str) -> None:
    examples = [BARE, ANSWERED, COMPARED, CHOSEN]
    assert check_metric(metric, examples) == usable
    with pytest.raises(MetricError, match=rf"^f\.jsonl: {metric} needs {fields}[^\n]*$"):
        check_metric(metric, [example for example in examples if example not in usable], source="f.jsonl")


def test_answers_that_rouge_cannot_see_and_too_many_choices_are_refused() -> None:
    with pytest.raises(MetricError, match="Latin letters"):
        check_metric("rouge_l", [Example("谁?", "李白")])
    many = Example("Who?", "1", choices=tuple(map(str, range(27))), answer_index=1)
    with pytest.raises(MetricError, match="2 to 26"):
        check_metric("choice_accuracy", [many])


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MetricError, match="--metric: 'bleu' is none of answer_probability, rouge_l"):
        check_metric("bleu", [ANSWERED])


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_tolerance_and_one_of_a_test_shrinks_with_the_number_of_examples(metric: Metric) -> None:
    few, many = (default_tolerance(metric, examples) for examples in (100, 400))
    assert 0 < many <= few < 0.1
    assert few / many == pytest.approx(2 if metric == "forget_quality" else 1)

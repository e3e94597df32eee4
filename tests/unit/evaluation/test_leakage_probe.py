"""The linear probe finds what is planted in logits, and nothing where there is nothing."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluation.leakage.data import Question, Subset, choice_questions
from evaluation.leakage.probes import probe_predictions, row_span

QUESTIONS, VOCABULARY = 200, 600


def asked(count):
    rows = (Question(i, f"Question {i}?", f"right {i}", f"right {i}", ("x", "y", "z")) for i in range(count))
    return Subset("forget", "questions.jsonl", tuple(rows))


def logits_and_labels(strength, seed=0):
    """Noise, with `strength` added to one of four tokens: the one whose option is right."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(QUESTIONS) % 4)
    logits = generator.normal(0, 1, (QUESTIONS, VOCABULARY))
    logits[np.arange(QUESTIONS), 100 + labels] += strength
    return logits.astype(np.float32), labels


def accuracy(features, labels):
    return float((probe_predictions(features, labels, seed=1) == labels).mean())


def test_probe_finds_a_planted_answer_in_all_logits():
    logits, labels = logits_and_labels(strength=15.0)
    assert accuracy(row_span(logits), labels) > 0.9


def test_probe_is_at_chance_in_noise():
    found = [accuracy(row_span(logits), labels) for logits, labels in (logits_and_labels(0.0, s) for s in range(5))]
    assert np.mean(found) == pytest.approx(0.25, abs=0.06)  # standard error 0.014


def test_span_loses_nothing_of_the_logits():
    logits, labels = logits_and_labels(strength=6.0)
    rows = logits - logits.mean(axis=0)
    rows /= np.sqrt((rows**2).mean())
    span = row_span(logits)
    np.testing.assert_allclose(span @ span.T, rows @ rows.T, rtol=1e-3, atol=0.05)
    train, test = slice(0, 150), slice(150, None)
    on_all, on_span = (
        LogisticRegression(max_iter=5000, tol=1e-8).fit(x[train], labels[train]).predict_proba(x[test])
        for x in (rows.astype(np.float64), span)
    )
    np.testing.assert_allclose(on_all, on_span, atol=1e-3)


def test_logits_that_are_all_the_same_have_an_empty_span():
    assert row_span(np.ones((8, 5), dtype=np.float32)).tolist() == [[0.0]] * 8


def test_right_options_are_balanced_and_where_they_are_said_to_be():
    questions = choice_questions(asked(42), seed=7)
    places = [one.right for one in questions]
    assert sorted(places.count(place) for place in range(4)) == [10, 10, 11, 11]
    for number, one in enumerate(questions):
        lines = one.prompt.splitlines()
        assert lines[0] == f"Question {number}?"
        assert lines[-1] == "Answer:"
        assert lines[1 + one.right] == f"{'ABCD'[one.right]}. right {number}"
        assert sorted(line[3:] for line in lines[1:5]) == sorted([f"right {number}", "x", "y", "z"])


def test_order_of_options_follows_from_the_seed():
    assert choice_questions(asked(20), seed=7) == choice_questions(asked(20), seed=7)
    assert choice_questions(asked(20), seed=7) != choice_questions(asked(20), seed=8)


def test_a_label_that_is_too_rare_is_refused():
    with pytest.raises(ValueError, match="one occurs 1 times"):
        probe_predictions(np.eye(5), np.array([0, 0, 1, 1, 2]), seed=0)

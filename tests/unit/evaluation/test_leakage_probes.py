"""What is read off a model's inside: answers planted in logits, and tokens of corrupted embedding rows."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from corruption import CorruptionSpec, corrupt
from evaluation.leakage.data import Question, Subset, choice_questions
from evaluation.leakage.probes import (
    DISTANCES,
    CorruptedPrompt,
    nearest_tokens,
    probe_predictions,
    recovery_rates,
    repeat_ask,
    row_span,
)

QUESTIONS, LOGITS = 200, 600


def asked(count):
    rows = (Question(i, f"Question {i}?", f"right {i}", f"right {i}", ("x", "y", "z")) for i in range(count))
    return Subset("forget", "questions.jsonl", tuple(rows))


def logits_and_labels(strength, seed=0):
    """Noise, with `strength` added to one of four tokens: the one whose option is right."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(QUESTIONS) % 4)
    logits = generator.normal(0, 1, (QUESTIONS, LOGITS))
    logits[np.arange(QUESTIONS), 100 + labels] += strength
    return logits.astype(np.float32), labels


def accuracy(features, labels):
    return float((probe_predictions(features, labels, seed=1) == labels).mean())


def test_probe_finds_a_planted_answer_in_all_logits():
    logits, labels = logits_and_labels(strength=15.0)
    assert accuracy(row_span(logits), labels) > 0.9


def test_probe_is_at_chance_in_noise():
    found = [accuracy(row_span(logits), labels) for logits, labels in (logits_and_labels(0.0, s) for s in range(3))]
    assert np.mean(found) == pytest.approx(0.25, abs=0.06)  # standard error 0.018


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


VOCABULARY, WIDTH = 500, 64
TOKENS = (3, 77, 410, 12, 3, 250, 499, 0)


@pytest.fixture(scope="module")
def table():
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(5))


def corrupted(table, strength):
    spec = CorruptionSpec(method="rand_noise_first_n", strength=strength)
    mask = torch.ones(len(TOKENS), dtype=torch.bool)
    rows = corrupt(table[list(TOKENS)], mask, spec, row_seeds=list(range(len(TOKENS))))
    return CorruptedPrompt(TOKENS, rows, table)


@pytest.mark.parametrize("metric", DISTANCES)
def test_rows_are_read_back_until_they_are_drowned_in_noise(table, metric):
    rates = recovery_rates([corrupted(table, strength) for strength in (0.0, 0.1, 100.0)], metric)
    assert rates[:2] == [1.0, 1.0]
    assert rates[2] < 0.2


@pytest.mark.parametrize("metric", DISTANCES)
def test_nearest_is_that_of_all_pairs(table, metric, monkeypatch):
    monkeypatch.setattr("evaluation.leakage.probes._MAX_PRODUCTS", 3 * VOCABULARY)  # several steps
    rows = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(6)) * 2
    a, b = rows.double().numpy(), table.double().numpy()
    if metric == "l2":
        expected = ((a[:, None] - b) ** 2).sum(-1).argmin(-1)
    else:
        expected = (a @ b.T / np.linalg.norm(b, axis=-1)).argmax(-1)
    assert nearest_tokens(rows, table, metric).tolist() == expected.tolist()


def test_cosine_does_not_see_a_rows_length(table):
    scaled = CorruptedPrompt(TOKENS, table[list(TOKENS)] * 0.01, table)
    assert recovery_rates([scaled], "cosine") == [1.0]
    assert recovery_rates([scaled], "l2")[0] < 0.5


def test_half_precision_rows_are_compared(table):
    rows = table.bfloat16()
    assert recovery_rates([CorruptedPrompt(TOKENS, rows[list(TOKENS)], rows)]) == [1.0]


def test_what_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="token_ids: 8 tokens for 2 rows"):
        recovery_rates([CorruptedPrompt(TOKENS, table[:2], table)])
    with pytest.raises(ValueError, match="rows of 8 dimensions"):
        nearest_tokens(table[:, :8], table)


def test_the_request_ends_with_the_question():
    assert repeat_ask("Who wrote it?").prompt.endswith("\n\nWho wrote it?")

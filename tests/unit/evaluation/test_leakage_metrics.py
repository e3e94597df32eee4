"""Extraction strength and exact memorization, against greedy decoding of a real model."""

import pytest
import torch
from tiny_model import tiny_model

from evaluation.leakage.metrics import exact_memorization, extraction_strength

PROMPT = [1, 40, 41, 42]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def continued(model, ids, count):
    """Greedy decoding, one token after the other."""
    ids = list(ids)
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def greedy_flags(model, answer):
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + answer])).logits[0]
    likeliest = logits[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    return [a == b for a, b in zip(likeliest, answer, strict=True)]


def brute_force_strength(model, answer):
    """As defined: the shortest prefix from which greedy decoding says the rest."""
    for k in range(len(answer) + 1):
        said = continued(model, PROMPT + answer[:k], len(answer) - k)
        if said[len(PROMPT) :] == answer:
            return 1 - k / len(answer)
    raise AssertionError("the whole answer is a prefix of itself")


def own_words(model):
    """What the model itself says, with one token exchanged in the middle and with none."""
    said = continued(model, PROMPT, 12)[len(PROMPT) :]
    changed = [*said[:5], (said[5] + 1) % 262]
    changed += continued(model, PROMPT + changed, 6)[len(PROMPT + changed) :]
    return said, changed


def test_strength_is_that_of_greedy_decoding(model):
    said, changed = own_words(model)
    last_wrong = [*said[:-1], (said[-1] + 1) % 262]
    strengths = []
    for answer in (said, changed, last_wrong, [7, 200, 13, 90, 55]):
        strengths.append(extraction_strength(greedy_flags(model, answer)))
        assert strengths[-1] == pytest.approx(brute_force_strength(model, answer))
    assert strengths[:3] == [1.0, 0.5, 0.0]


def test_exact_memorization_counts_every_greedy_token(model):
    said, changed = own_words(model)
    assert exact_memorization(greedy_flags(model, said)) == 1.0
    assert exact_memorization(greedy_flags(model, changed)) == pytest.approx(11 / 12)


@pytest.mark.parametrize("metric", [extraction_strength, exact_memorization])
def test_an_answer_without_tokens_is_refused(metric):
    with pytest.raises(ValueError, match="greedy: no token"):
        metric([])

"""Extraction against greedy decoding of a real model, and areas under the ROC curve against scikit-learn."""

import math
import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_model import tiny_model

from evaluation.leakage.metrics import (
    auc,
    auc_with_interval,
    exact_memorization,
    extraction_strength,
    likelihood,
    min_k,
    min_k_plus_plus,
    priv_leak,
    priv_leak_with_interval,
    zlib_ratio,
)

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


def two_sets(members=40, nonmembers=60, shift=0.7, draws=1, seed=3):
    generator = np.random.default_rng(seed)
    return (
        np.round(generator.normal(shift, 1, (draws, members)), 1),  # rounded: with ties
        np.round(generator.normal(0, 1, (draws, nonmembers)), 1),
    )


def reference_auc(members, nonmembers):
    return roc_auc_score([1] * len(members) + [0] * len(nonmembers), np.concatenate([members, nonmembers]))


def test_auc_is_scikit_learns_with_ties():
    (members,), (nonmembers,) = two_sets()
    assert auc(members, nonmembers) == pytest.approx(reference_auc(members, nonmembers), abs=1e-12)


def test_auc_at_its_ends():
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    assert (auc(high, low), auc(low, high), auc(low, low)) == (1.0, 0.0, 0.5)
    assert math.isnan(auc(low, np.array([])))


def test_interval_is_that_of_a_bootstrap_with_scikit_learn():
    members, nonmembers = two_sets()
    value, interval = auc_with_interval(members, nonmembers)
    generator = np.random.default_rng(0)
    resampled = [
        reference_auc(generator.choice(members[0], members.shape[1]), generator.choice(nonmembers[0], 60))
        for _ in range(400)
    ]
    assert value == pytest.approx(reference_auc(members[0], nonmembers[0]))
    np.testing.assert_allclose(interval, np.quantile(resampled, [0.025, 0.975]), atol=0.03)


def test_several_draws_are_averaged_and_widen_the_interval():
    members, nonmembers = two_sets()
    other = members - 1.0
    value, (low, high) = auc_with_interval(np.concatenate([members, other]), np.concatenate([nonmembers, nonmembers]))
    assert value == pytest.approx((auc(members[0], nonmembers[0]) + auc(other[0], nonmembers[0])) / 2)
    alone = auc_with_interval(members, nonmembers)[1]
    assert high - low > alone[1] - alone[0]


def test_one_member_has_no_interval():
    assert auc_with_interval(np.array([[1.0]]), np.array([[0.0, 2.0]])) == (0.5, None)


def test_min_k_is_the_mean_of_the_least_likely_tokens():
    logprobs = [-1.0, -9.0, -2.0, -5.0, -3.0, -0.5, -0.1, -0.2, -0.3, -0.4]
    assert min_k(logprobs, 0.2) == pytest.approx(-7.0)
    assert min_k(logprobs, 1.0) == pytest.approx(likelihood(logprobs)) == pytest.approx(np.mean(logprobs))
    assert min_k([-4.0, -1.0], 0.2) == -4.0  # at least one


def test_min_k_plus_plus_from_a_models_logits():
    answer = torch.tensor([90, 14, 200, 31, 77, 8, 120, 55, 61, 240])
    prompt = torch.tensor([1, 5, 6])
    with torch.inference_mode():
        logits = tiny_model()(torch.cat([prompt, answer])[None]).logits[0, 2:-1].double()
    p = logits.softmax(-1)
    log_p = p.log()
    mean = (p * log_p).sum(-1)
    std = ((p * (log_p - mean[:, None]) ** 2).sum(-1)).sqrt()
    own = log_p[torch.arange(10), answer]
    expected = ((own - mean) / std).sort().values[:2].mean().item()
    assert min_k_plus_plus(own.tolist(), mean.tolist(), std.tolist(), 0.2) == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(min_k(own.tolist(), 0.2), abs=0.1)


def test_min_k_plus_plus_of_a_certain_model_is_finite():
    assert min_k_plus_plus([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]) == 0.0
    assert math.isfinite(min_k_plus_plus([-30.0], [-1e-12], [0.0]))


def test_zlib_ratio_discounts_what_compresses_well():
    simple, varied = "la la la la la la la la", "Quartz jolts my vex'd bfg?"
    assert zlib_ratio([-2.0, -4.0], varied) == -3.0 / len(zlib.compress(varied.encode()))
    assert zlib_ratio([-3.0], simple) < zlib_ratio([-3.0], varied)


def test_priv_leak_is_muses():
    # MUSE's own AUC takes the forget set for the non-members: 1 - AUC.
    unlearned, retrained = 0.9, 0.5228
    muse = lambda own: 1 - own  # noqa: E731
    assert priv_leak(unlearned, retrained) == pytest.approx((muse(unlearned) - muse(retrained)) / muse(retrained) * 100)
    assert priv_leak(1.0, 0.5) == -100.0
    assert priv_leak(0.5, 0.5) == 0.0
    assert priv_leak(0.1, 0.5) > 0
    assert math.isnan(priv_leak(0.5, 1.0))


def test_priv_leak_resamples_both_models_together():
    scores = two_sets(shift=0.3)
    assert priv_leak_with_interval(scores, scores) == (0.0, (0.0, 0.0))
    value, (low, high) = priv_leak_with_interval(two_sets(shift=3.0), scores)
    assert low < value < high < -50

import itertools
import math

import pytest
import torch
from loss_reference import TARGETS, A, V, close, divergences, merged_divergences, random_logits, softmax

from offline_training.data.answers import FullReference, TopKReference
from offline_training.errors import SettingsError
from offline_training.methods.losses import kl_divergence


def top_k(logits: torch.Tensor, k: int) -> TopKReference:
    logprobs = logits.log_softmax(-1)
    values, indices = logprobs.topk(k, dim=-1)
    return TopKReference(indices, values, logprobs.gather(-1, TARGETS[:, None])[:, 0])


def test_by_hand() -> None:
    model = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    reference = torch.log(torch.tensor([[0.25, 0.5, 0.25]]))
    forward = 0.25 * math.log(0.5) + 0.5 * math.log(2.0)
    assert close(kl_divergence(model, FullReference(reference)), [forward])


def test_it_is_the_reference_that_is_averaged_over() -> None:
    """The other direction has another value."""
    model = torch.log(torch.tensor([[0.9, 0.05, 0.05]]))
    reference = torch.log(torch.tensor([[0.5, 0.4, 0.1]]))
    forward = 0.5 * math.log(0.5 / 0.9) + 0.4 * math.log(8.0) + 0.1 * math.log(2.0)
    backward = 0.9 * math.log(1.8) + 0.05 * math.log(0.125) + 0.05 * math.log(0.5)
    assert abs(forward - backward) > 0.1
    assert close(kl_divergence(model, FullReference(reference)), [forward])


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_full_against_loops(temperature: float) -> None:
    model, reference = random_logits(0), random_logits(1)
    values = kl_divergence(model, FullReference(reference), temperature)
    assert values.shape == (A,)
    assert close(values, divergences(model, reference, temperature))
    assert (values > 0).all()


def test_gradient_pulls_the_model_to_the_reference() -> None:
    """d KL(p ‖ q) / d logits = q - p, and with a temperature (q_T - p_T) / T."""
    reference = random_logits(1)
    for temperature in (1.0, 4.0):
        model = random_logits(0).requires_grad_()
        kl_divergence(model, FullReference(reference), temperature).sum().backward()
        q = torch.tensor([softmax(row, temperature) for row in model.tolist()])
        p = torch.tensor([softmax(row, temperature) for row in reference.tolist()])
        assert torch.allclose(model.grad, (q - p) / temperature, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, V - 1, V])
def test_top_k_against_loops(k: int) -> None:
    model, reference = random_logits(2), random_logits(3)
    values = kl_divergence(model, top_k(reference, k))
    assert values.shape == (A,)
    assert close(values, merged_divergences(model, reference, k))


def test_top_k_by_hand() -> None:
    model = torch.log(torch.tensor([[0.2, 0.2, 0.6]] * A))
    reference = torch.log(torch.tensor([[0.7, 0.2, 0.1]] * A))
    expected = 0.7 * math.log(3.5) + 0.3 * math.log(0.3 / 0.8)
    narrow = TopKReference(torch.zeros(A, 1, dtype=torch.long), reference[:, :1], reference[:, 0])
    assert close(kl_divergence(model, narrow), [expected] * A)


def test_top_k_is_a_lower_bound_that_grows_with_k() -> None:
    model, reference = random_logits(4), random_logits(5)
    values = [kl_divergence(model, top_k(reference, k)) for k in range(1, V + 1)]
    exact = kl_divergence(model, FullReference(reference))
    for narrow, wide in itertools.pairwise(values):
        assert (narrow <= wide + 1e-5).all()
    assert torch.allclose(values[-1], exact, atol=1e-5)
    assert (values[0] < exact - 1e-3).any()


@pytest.mark.parametrize("k", [2, V])
def test_top_k_gradient_against_finite_differences(k: int) -> None:
    reference = top_k(random_logits(7).double(), k)
    model = random_logits(6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: kl_divergence(logits, reference), (model,))


def test_equal_distributions_have_no_divergence_and_no_gradient() -> None:
    logits = random_logits(8)
    for reference in (FullReference(logits), top_k(logits, 2), top_k(logits, V)):
        model = (logits + 5.0).requires_grad_()  # a constant added to all logits changes nothing
        values = kl_divergence(model, reference)
        values.sum().backward()
        assert values.abs().max() < 1e-5
        assert model.grad is not None
        assert model.grad.abs().max() < 1e-5


def test_stays_finite_where_probabilities_underflow() -> None:
    sure = torch.tensor([[500.0, 0.0, 0.0, 0.0, 0.0]] * A)
    for reference in (FullReference(sure), top_k(sure, 1), top_k(sure, 3)):
        model = (-sure).requires_grad_()
        values = kl_divergence(model, reference)
        values.sum().backward()
        assert close(values, [500.0 + math.log(4.0)] * A)
        assert model.grad is not None
        assert torch.isfinite(model.grad).all()


def test_probabilities_that_round_to_more_than_one() -> None:
    halves = torch.tensor([[0.5, 0.5]]).log() + 1e-6
    reference = TopKReference(torch.tensor([[0, 1]]), halves, halves[:, 0])
    assert close(kl_divergence(torch.tensor([[0.0, 0.0, -30.0]]), reference), [1e-6])


def test_a_temperature_needs_the_whole_distribution() -> None:
    with pytest.raises(SettingsError, match=r"^reference_cache: a temperature \(4\) needs"):
        kl_divergence(random_logits(0), top_k(random_logits(1), 2), 4.0)

import math

import pytest
import torch
from loss_reference import close, sigmoid

from offline_training.errors import DataError
from offline_training.methods.preference import direct_preference, negative_preference, simple_negative_preference

RATIOS = [-3.0, -0.5, 0.0, 0.7, 2.5]


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), leaf)[0]


def test_npo_by_hand() -> None:
    assert close(negative_preference(torch.tensor([math.log(3.0)]), 1.0), [2 * math.log(4.0)])


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_npo_before_the_first_step(beta: float) -> None:
    """Model = reference: 2 log 2 / β, and the gradient is gradient ascent's whatever β is."""
    ratio = torch.zeros(3, requires_grad=True)
    loss = negative_preference(ratio, beta)
    assert close(loss, [2 * math.log(2.0) / beta] * 3)
    assert close(gradient(loss, ratio), [1.0] * 3)


def test_npo_pushes_less_the_more_is_forgotten() -> None:
    ratio = torch.tensor([1.0, 0.0, -10.0, -100.0, -1e4], requires_grad=True)
    weights = gradient(negative_preference(ratio, 0.1), ratio)
    assert close(weights, [2 * sigmoid(0.1 * r) for r in (1.0, 0.0, -10.0, -100.0)] + [0.0])
    assert (weights[:-1] > weights[1:]).all()
    assert (weights >= 0).all()  # descent lowers the ratio: the answer becomes less likely


def test_npo_becomes_ascent_as_beta_goes_to_zero() -> None:
    beta = 1e-4
    ratio = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)
    loss = negative_preference(ratio, beta)
    assert torch.allclose(gradient(loss, ratio), torch.ones(5, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(loss - 2 * math.log(2.0) / beta, ratio, atol=1e-3)


def test_simnpo_by_hand() -> None:
    """σ(1 · log 3 - 0) = 3/4, and a margin of log 3 makes it 1/2."""
    mean = torch.tensor([math.log(3.0)])
    assert close(simple_negative_preference(mean, 1.0, 0.0), [2 * math.log(4 / 3)])
    assert close(simple_negative_preference(mean, 1.0, math.log(3.0)), [2 * math.log(2.0)])


def test_simnpo_raises_the_mean_cross_entropy_and_stops() -> None:
    mean = torch.tensor([0.1, 1.0, 3.0, 50.0], requires_grad=True)
    slopes = gradient(simple_negative_preference(mean, 2.5, 0.0), mean)
    assert close(slopes, [-2 * sigmoid(-2.5 * x) for x in (0.1, 1.0, 3.0, 50.0)])
    assert (slopes[:-1] < slopes[1:]).all()
    assert slopes[0] < -0.8


def test_dpo_prefers_the_chosen() -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = direct_preference(chosen, rejected, 0.5)
    assert close(gradient(direct_preference(chosen, rejected, 0.5), chosen), [-1.0, -1.0])
    assert close(gradient(loss, rejected), [1.0, 1.0])


def test_dpo_with_an_unmoved_refusal_is_npo() -> None:
    ratios = torch.tensor(RATIOS)
    assert torch.allclose(direct_preference(torch.zeros(5), ratios, 0.3), negative_preference(ratios, 0.3))


def test_dpo_refuses_an_answer_without_refusal() -> None:
    with pytest.raises(DataError, match=r"^2 preferred answers for 3 to forget; give exactly one"):
        direct_preference(torch.zeros(2), torch.zeros(3), 0.1)


def test_extreme_ratios_stay_finite() -> None:
    extreme = torch.tensor([1e4, -1e4], requires_grad=True)
    for loss in (
        negative_preference(extreme, 4.5),
        simple_negative_preference(extreme, 4.5, 0.0),
        direct_preference(extreme, -extreme, 4.5),
    ):
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient(loss, extreme)).all()

"""The second-order optimizer against its formula, written out in Python's floats."""

import math

import pytest
import torch

from offline_training.sophia import Sophia


def test_steps_by_hand() -> None:
    """SOUL's code moves the momentum (0.9) twice a step, and scales the curvature by ρ * 5120."""
    start, gradients = [1.0, -2.0, 0.5], [[0.01, -3.0, 0.0], [-0.5, -1e-4, 0.0], [0.2, 1.0, 1e-7]]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = Sophia([{"params": [weight], "weight_decay": 0.1}], lr=0.01, rho=0.04)
    expected, mean, curvature = list(start), [0.0] * 3, [0.0] * 3
    for row in gradients:
        weight.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        for i, gradient in enumerate(row):
            curvature[i] = 0.95 * curvature[i] + 0.05 * gradient**2
            for _ in range(2):
                mean[i] = 0.9 * mean[i] + 0.1 * gradient
            ratio = min(abs(mean[i]) / (0.04 * 5120 * curvature[i] + 1e-15), 1.0)
            expected[i] *= 1 - 0.01 * 0.1
            expected[i] -= 0.01 * math.copysign(ratio, mean[i])
    assert weight.tolist() == pytest.approx(expected, rel=1e-9)
    assert len({round(value, 6) for value in weight.tolist()}) == 3


def test_no_step_is_longer_than_the_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = Sophia([weight], lr=0.1, rho=0.04)
    weight.grad = torch.logspace(-12, 6, 1000)
    optimizer.step()
    assert float(weight.detach().abs().max()) <= 0.1 + 1e-7
    assert (weight.detach() < 0).all()

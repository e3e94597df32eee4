"""Losses with a target distribution or a target activation: UNDIAL, CE-U, RMU."""

import math

import pytest
import torch
from loss_reference import TARGETS, A, V, close, random_logits, softmax

from offline_training.methods.distillation import adjusted_distillation, cross_entropy_unlearning
from offline_training.methods.steering import activation_distance, control_vector


def test_undial_by_hand() -> None:
    """Reference (3/4, 1/4); lowering the first logit by log 3 makes it (1/2, 1/2)."""
    reference = torch.log(torch.tensor([[0.75, 0.25]]))
    model = torch.log(torch.tensor([[0.2, 0.8]]))
    value = adjusted_distillation(model, reference, torch.tensor([0]), math.log(3.0))
    assert close(value, [-0.5 * math.log(0.2) - 0.5 * math.log(0.8)])


def test_undial_gradient_leads_to_the_adjusted_distribution() -> None:
    model, reference = random_logits(2).requires_grad_(), random_logits(3)
    before = reference.clone()
    adjusted_distillation(model, reference, TARGETS, 4.0).sum().backward()
    lowered = reference - 4.0 * torch.nn.functional.one_hot(TARGETS, V)
    assert torch.equal(reference, before)
    assert torch.allclose(model.grad, model.detach().softmax(-1) - lowered.softmax(-1), atol=1e-6)


def test_ceu_by_hand() -> None:
    """p = (1/2, 3/8, 1/8): without the first, (3/4, 1/4)."""
    logits = torch.log(torch.tensor([[4.0, 3.0, 1.0]]))
    expected = -0.75 * math.log(0.375) - 0.25 * math.log(0.125)
    assert close(cross_entropy_unlearning(logits, torch.tensor([0])), [expected])


def test_ceu_gradient_is_the_targets_probability() -> None:
    """On the target's logit p(target); on the others p_v - p_v / (1 - p(target)): in sum, 0."""
    logits = random_logits(5).requires_grad_()
    cross_entropy_unlearning(logits, TARGETS).sum().backward()
    assert logits.grad is not None
    rows = [softmax(row) for row in logits.tolist()]
    expected = [
        [p if v == target else p - p / (1 - row[target]) for v, p in enumerate(row)]
        for row, target in zip(rows, TARGETS.tolist(), strict=True)
    ]
    assert torch.allclose(logits.grad, torch.tensor(expected), atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    for target in (0, 1):
        logits = torch.tensor([[400.0, 0.0, -400.0]], requires_grad=True)
        index = torch.tensor([target])
        for loss in (
            cross_entropy_unlearning(logits, index),
            adjusted_distillation(logits, logits.detach(), index, 10.0),
        ):
            assert torch.isfinite(loss).all()
            assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


def test_control_vector_is_a_positive_direction_of_the_length_asked_for() -> None:
    vector = control_vector(64, 6.5, seed=3)
    assert vector.shape == (64,)
    assert vector.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (vector >= 0).all()  # uniform on [0, 1), as in the official code, not a normal direction
    assert vector.std() > 0.1


def test_control_vector_follows_from_size_and_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = control_vector(8, 1.0, seed=0)
    torch.manual_seed(99)
    assert torch.equal(first, control_vector(8, 1.0, seed=0))
    assert not torch.equal(first, control_vector(8, 1.0, seed=1))
    torch.random.set_rng_state(state)
    control_vector(8, 1.0, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())  # the job's own randomness is left alone


def test_activation_distance_by_hand() -> None:
    hidden = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    assert activation_distance(hidden, torch.tensor([0.0, 0.0, 1.0])).tolist() == pytest.approx([14 / 3, 1 / 3])
    assert activation_distance(hidden, torch.tensor([[1.0, 2.0, 3.0], [0.0, 6.0, 0.0]])).tolist() == pytest.approx(
        [1 / 3, 12.0]
    )


def test_activation_distance_against_loops_and_its_gradient() -> None:
    hidden, target = random_logits(6).requires_grad_(), random_logits(7)
    values = activation_distance(hidden, target)
    rows = zip(hidden.tolist(), target.tolist(), strict=True)
    assert values.shape == (A,)
    assert close(values, [sum((h - t) ** 2 for h, t in zip(a, b, strict=True)) / V for a, b in rows])
    values.sum().backward()
    assert torch.allclose(hidden.grad, 2 / V * (hidden.detach() - target), atol=1e-6)

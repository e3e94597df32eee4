import math

import torch
from loss_reference import SEQUENCE, TARGETS, A, S, V, close, cross_entropies, means, random_logits, sums

from offline_training.data.answers import FullReference, TopKReference
from offline_training.methods.distillation import places_in_answer
from offline_training.methods.losses import cross_entropy, mean_by_answer, reference_logprobs, sum_by_answer
from offline_training.methods.reweighting import importance_and_saturation, likelihood_power


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])  # p = (1/4, 3/4), (4/5, 1/5)
    assert close(cross_entropy(logits, torch.tensor([0, 0])), [math.log(4.0), math.log(1.25)])


def test_cross_entropy_against_loops() -> None:
    logits = random_logits(0)
    assert close(cross_entropy(logits, TARGETS), cross_entropies(logits))


def test_ascent_lowers_the_target_and_raises_the_others() -> None:
    logits = random_logits(1).requires_grad_()
    (-cross_entropy(logits, TARGETS)).sum().backward()
    step = -logits.grad  # what descent on the negated loss adds
    is_target = torch.nn.functional.one_hot(TARGETS, V).bool()
    assert (step[is_target] < 0).all()
    assert (step[~is_target] > 0).all()
    assert (cross_entropy(logits.detach() + 0.1 * step, TARGETS) > cross_entropy(logits.detach(), TARGETS)).all()


def test_gradient_is_finite_where_the_target_is_impossible() -> None:
    logits = torch.zeros(1, V)
    logits[0, 0] = 300.0  # p(target) underflows float32
    for loss in (
        cross_entropy,
        lambda logits, targets: likelihood_power(logits, targets, 1.0),
        lambda logits, targets: importance_and_saturation(logits, targets, 5.0, 1.0),
    ):
        for target in (0, 3):
            leaf = logits.clone().requires_grad_()
            value = loss(leaf, torch.tensor([target]))
            value.sum().backward()
            assert torch.isfinite(value).all()
            assert torch.isfinite(leaf.grad).all()


def test_sums_and_means_by_answer() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 5.0, 0.5, 1.5, 4.0])
    assert sum_by_answer(values, SEQUENCE, S).tolist() == [9.0, 5.0, 6.0]
    assert mean_by_answer(values, SEQUENCE, S).tolist() == [3.0, 5.0, 2.0]


def test_an_answer_without_tokens_has_mean_zero_and_no_nan_gradient() -> None:
    values = torch.ones(2, requires_grad=True)
    result = mean_by_answer(values, torch.tensor([0, 2]), 3)
    result.sum().backward()
    assert result.tolist() == [1.0, 0.0, 1.0]
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0]


def test_gradients_go_to_the_tokens_of_the_answer() -> None:
    values = torch.zeros(A, requires_grad=True)
    mean_by_answer(values, SEQUENCE, S)[2].backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, torch.tensor([0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3]))


def test_places_in_answer() -> None:
    assert places_in_answer(SEQUENCE, S).tolist() == [0, 1, 2, 0, 0, 1, 2]
    assert places_in_answer(torch.tensor([1, 1, 3]), 4).tolist() == [0, 1, 0]


def test_reference_logprobs_of_both_kinds() -> None:
    logits = random_logits(2)
    full = reference_logprobs(FullReference(logits), TARGETS)
    assert close(-full, cross_entropies(logits))
    logprobs, indices = logits.log_softmax(-1).topk(1, dim=-1)  # most targets are not among them
    top = TopKReference(indices, logprobs, torch.tensor([-0.5] * A))
    assert torch.equal(reference_logprobs(top, TARGETS), top.target_logprobs)


def test_likelihood_power_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # p(0) = 1/4
    assert close(likelihood_power(logits, torch.tensor([0]), 2.0), [math.log(4.0) / 16])


def test_importance_and_saturation_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert close(importance_and_saturation(logits, torch.tensor([0]), 2.0, 1.0), [math.log(4.0) / 16 * 0.75])


def test_weights_carry_no_gradient() -> None:
    """The gradient is the weight times cross entropy's."""
    plain, weighted, both = (random_logits(5).requires_grad_() for _ in range(3))
    cross_entropy(plain, TARGETS).sum().backward()
    likelihood_power(weighted, TARGETS, 2.0).sum().backward()
    importance_and_saturation(both, TARGETS, 2.0, 3.0).sum().backward()
    p = torch.tensor([math.exp(-value) for value in cross_entropies(plain)])[:, None]
    assert plain.grad is not None
    assert torch.allclose(weighted.grad, p**2 * plain.grad, rtol=1e-4, atol=1e-7)
    assert torch.allclose(both.grad, p**2 * (1 - p) ** 3 * plain.grad, rtol=1e-4, atol=1e-7)


def test_means_are_not_sums() -> None:
    losses = cross_entropy(random_logits(6), TARGETS)
    assert close(mean_by_answer(losses, SEQUENCE, S), means(losses.tolist()))
    assert close(sum_by_answer(losses, SEQUENCE, S), sums(losses.tolist()))

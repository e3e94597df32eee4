"""Generic logits and labels, against hand-computed values and a slow reference in float64."""

import pytest
import torch

from offline_training.data.tokens import IGNORED
from offline_training.potter.blocks import Block, Position
from offline_training.potter.labelling import generic_logits, generic_tokens, labelled

NONE = torch.tensor([], dtype=torch.long)


def test_by_hand() -> None:
    baseline = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 5.0]])
    reinforced = torch.tensor([[3.0, 0.0, -1.5], [0.5, 3.0, 9.0]])
    expected = torch.tensor([[2.0 - 5.0, 1.0, -1.0], [-2.5, 3.0, 5.0 - 20.0]])
    assert torch.equal(generic_logits(baseline, reinforced, 5.0), expected)


def test_as_a_slow_loop_in_float64() -> None:
    torch.manual_seed(0)
    baseline, reinforced = torch.randn(2, 7, 11, dtype=torch.float64)
    generic = generic_logits(baseline, reinforced, 1.7)
    for a in range(7):
        for v in range(11):
            b, r = baseline[a, v].item(), reinforced[a, v].item()
            assert generic[a, v].item() == pytest.approx(b - 1.7 * (r - b) if r > b else b, abs=1e-12)


def test_without_weight_it_is_the_baseline() -> None:
    baseline, reinforced = torch.randn(2, 3, 5)
    assert torch.equal(generic_logits(baseline, reinforced, 0.0), baseline)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        generic_logits(torch.zeros(2, 3), torch.zeros(1, 3), 5.0)


def test_given_translations_are_less_likely_and_forbidden_tokens_no_labels() -> None:
    generic = torch.tensor([[4.0, 3.0, 1.0], [4.0, 3.0, 1.0], [4.0, 3.0, 1.0]])
    given = [(), (0,), (0, 1)]
    assert generic_tokens(generic, given, NONE, 2.5).tolist() == [0, 1, 0]
    assert generic_tokens(generic, given, NONE, 3.5).tolist() == [0, 1, 2]
    assert generic_tokens(generic, given, NONE, 0.0).tolist() == [0, 0, 0]
    assert generic_tokens(generic, given, torch.tensor([0]), 0.0).tolist() == [1, 1, 1]
    assert generic[1, 0] == 4.0  # the argument is left as it was


def test_labels_stand_where_they_were_predicted() -> None:
    block = Block((7, 8, 9, 10), (7, 5, 9), (Position(0, 0, ()), Position(2, 2, ())), 0)
    example = labelled(block, [3, 4])
    assert example.ids == (7, 8, 9, 10)
    assert example.targets == (3, IGNORED, 4)
    assert example.prompt_length == 1

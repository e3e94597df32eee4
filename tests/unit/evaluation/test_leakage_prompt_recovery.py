"""Nearest-token decoding of corrupted embedding rows."""

import numpy as np
import pytest
import torch

from corruption import CorruptionSpec, corrupt
from evaluation.leakage.probes import DISTANCES, CorruptedPrompt, nearest_tokens, recovery_rates, repeat_ask

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

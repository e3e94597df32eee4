"""The interval of guarded answers: it must hold for a server, whose noise is none of those measured."""

import numpy as np
import pytest

from optimizer.guarded_answers import NOISE_DRAWS, half_width


@pytest.mark.parametrize(("between_examples", "between_draws"), [(0.1, 0.0), (0.05, 0.02), (0.0, 0.05)])
def test_it_covers_the_mean_of_other_examples_under_another_draw(between_examples: float, between_draws: float) -> None:
    rng = np.random.default_rng(0)
    examples, trials, covered = 48, 1000, 0
    for _ in range(trials):
        own = rng.normal(0.5, between_examples, examples)  # what is the example's, under any draw
        shared = rng.normal(0, between_draws, (NOISE_DRAWS, 1))  # what is the draw's, for all examples
        draws = own + shared
        served = 0.5 + rng.normal(0, between_draws)
        covered += abs(served - draws.mean()) <= half_width(draws)
    assert 0.93 <= covered / trials <= 0.99


def test_answers_that_no_noise_touches_have_the_examples_interval() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.5])
    expected = 1.96 * values.std(ddof=1) / 2
    assert half_width(np.tile(values, (NOISE_DRAWS, 1))) == pytest.approx(expected)


def test_one_example_has_the_draws_interval_alone() -> None:
    draws = np.array([[0.1], [0.2], [0.3], [0.2], [0.2]])
    assert half_width(draws) == pytest.approx(2.776 * draws.std(ddof=1) * 1.2**0.5)

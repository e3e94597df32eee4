import numpy as np
import pytest

from text.runs import entries, occurrences, spread


def test_runs_are_laid_end_to_end() -> None:
    at, run = spread(np.array([3, 0, 5]), np.array([5, 0, 8]))
    assert (at.tolist(), run.tolist()) == ([3, 4, 5, 6, 7], [0, 0, 2, 2, 2])
    at, which = entries(np.array([2, 0, 3]), np.array([2, 0, 1, 2]))
    assert (at.tolist(), which.tolist()) == ([2, 3, 4, 0, 1, 2, 3, 4], [0, 0, 0, 1, 1, 3, 3, 3])


@pytest.mark.parametrize("kinds", [5, 70_000])
def test_each_run_has_each_kind_once(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    positions = np.sort(rng.choice(400, 150, replace=False))
    kind = rng.integers(0, 5, 150) * (kinds // 5)  # the larger ones do not fit a radix sort
    starts = rng.integers(0, 400, 30)
    runs = np.stack([starts, np.minimum(starts + rng.integers(0, 90, 30), 400)], axis=1)
    run, found = occurrences(positions, kind, runs)
    expected = {
        (number, own)
        for number, (low, high) in enumerate(runs.tolist())
        for position, own in zip(positions.tolist(), kind.tolist(), strict=True)
        if low <= position < high
    }
    assert len(run) == len(expected) > 60
    assert set(zip(run.tolist(), found.tolist(), strict=True)) == expected
    assert (np.diff(run) >= 0).all()


def test_nothing_has_nothing() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert [len(part) for part in occurrences(nothing, nothing, np.array([[0, 0], [0, 5]]))] == [0, 0]

from benchmarks.guard import Timing, summary


def test_the_95th_percentile_is_a_measured_value() -> None:
    assert summary([float(value) for value in range(1, 101)], [2.0] * 100) == Timing(100, 50.5, 95.0, 100.0, 2.0)
    assert summary([3.0], [1.0], flagged=1) == Timing(1, 3.0, 3.0, 3.0, 1.0, 1)

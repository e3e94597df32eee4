"""Processor time, for bounds that tell linear from quadratic work."""

import time
from collections.abc import Callable


def seconds_of(action: Callable[[], object]) -> float:
    """What this thread alone took: neither a busy machine nor what other tests' threads do counts."""
    started = time.thread_time()
    action()
    return time.thread_time() - started

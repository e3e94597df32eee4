"""Everyday prompts that have nothing to do with any policy: negatives in training, texts for parity."""

import functools
from importlib import resources


@functools.cache
def general_prompts() -> tuple[str, ...]:
    """The built-in prompts, one per line of data/general_prompts.txt, in file order."""
    text = resources.files("sources").joinpath("data/general_prompts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)

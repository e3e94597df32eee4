"""Integers that come from a caller (token ids, seeds), checked before they index or seed anything."""

from collections.abc import Sequence

import torch


def int64_vector(name: str, values: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """`values` as an int64 tensor (N,) on the CPU.

    Floats and booleans are refused rather than converted: torch would truncate 1.5 to 1 without a word.

    Raises:
        TypeError: not integers.
        ValueError: not one-dimensional, or beyond 64 bits.
    """
    try:
        vector = torch.as_tensor(values)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected integers below 2**63 in one flat sequence ({error})") from error
    if vector.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(vector.shape)}")
    if vector.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if vector.dtype == torch.bool or vector.is_floating_point() or vector.is_complex():
        raise TypeError(f"{name}: expected integers, got {vector.dtype}")
    if vector.dtype == torch.uint64:
        raise ValueError(f"{name}: expected integers below 2**63")
    return vector.to(device="cpu", dtype=torch.int64)

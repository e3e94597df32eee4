"""ECO's fourteen corruption methods (arXiv 2406.07933) as one pure function over one prompt's embedding rows.

A method is (which dimensions of a row) x (what is done to them), or an order of the masked rows. The mask is
applied in one place, so that no method can touch a row outside it. This module knows nothing of tokens,
models or requests.
"""

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from corruption.integers import int64_vector
from corruption.spec import CorruptionSpec, Method

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)


# --- randomness ---------------------------------------------------------------------------------------------
# Philox and not torch.Generator: torch's CPU generator keeps only the low 32 bits of a seed, and these seeds
# are keyed hashes whose every bit should count. Philox takes the seed as its key; the bits above are free to
# keep apart the streams for different purposes.

_NOISE_STREAM: Final = 0
_DIMS_STREAM: Final = 1
_ORDER_STREAM: Final = 2


def _streams(seeds: Iterable[int], purpose: int) -> Iterator[np.random.Generator]:
    """Each seed's stream, to be drawn from before the next one is taken: all are one generator, set anew, since making
    one takes longer than drawing a few numbers."""
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for seed in seeds:
        state["state"]["key"][:] = (seed, purpose)  # as from Philox(key=seed | purpose << 64)
        philox.state = state
        yield generator


def _draw_per_row(seeds: Tensor, purpose: int, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    """`draw` from every row's own stream: seeds (M,) -> (M, n). A seed that comes twice is drawn once."""
    unique, inverse = np.unique(seeds.numpy(), return_inverse=True)
    drawn = np.stack([draw(stream) for stream in _streams(unique.tolist(), purpose)])  # (unique seeds, n)
    return torch.from_numpy(drawn[inverse])


# --- which dimensions: rows (M, D) -> indices (M, n) --------------------------------------------------------

_FIRST: Final = None
"""The first n, which need no indices."""


def _random(rows: Tensor, n: int, seeds: Tensor) -> Tensor:
    width = rows.shape[1]
    dims = _draw_per_row(seeds, _DIMS_STREAM, lambda rng: rng.choice(width, n, replace=False))
    return dims.to(rows.device)


def _highest(score: Callable[[Tensor], Tensor], rows: Tensor, n: int, _seeds: Tensor) -> Tensor:
    """The dimensions of the n highest float32 scores of rows (M, D), highest first; of equals, the lower first.

    Equal values are common in bfloat16 rows, and torch.topk may break ties differently from one batch or
    device to the next. So the rank is made unique: the value's bits, which order like the value, above the
    reversed index.
    """
    bits = (score(rows.float()) + 0.0).view(torch.int32)  # + 0.0: -0.0 and 0.0 are equal
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats order backwards by their bits
    rank = bits.long()
    rank <<= 32  # in place: for a long prompt these are the large tensors
    rank |= torch.arange(rows.shape[1] - 1, -1, -1, device=rows.device)
    return rank.topk(n, dim=1).indices


_LARGEST: Final = partial(_highest, torch.positive)
_LARGEST_ABSOLUTE: Final = partial(_highest, torch.abs)
_SMALLEST: Final = partial(_highest, torch.neg)


# --- what is done: values (M, n) and an amount that broadcasts to them -> new values (M, n) -----------------


def _replace(values: Tensor, amount: Tensor) -> Tensor:
    return amount.expand_as(values)


def _zero(values: Tensor, _amount: Tensor) -> Tensor:
    return torch.zeros_like(values)


def _flip(values: Tensor, _amount: Tensor) -> Tensor:
    return -values


class _Recipe(NamedTuple):
    dims: Callable[[Tensor, int, Tensor], Tensor] | None
    action: Callable[[Tensor, Tensor], Tensor]
    noisy: bool = False  # the amount is noise x strength, not strength itself


_RECIPES: Final[dict[Method, _Recipe]] = {
    "rand_noise_first_n": _Recipe(_FIRST, operator.add, noisy=True),
    "rand_noise_rand_n": _Recipe(_random, operator.add, noisy=True),
    "rand_noise_top_k": _Recipe(_LARGEST_ABSOLUTE, operator.add, noisy=True),
    "set_rand_noise_first_n": _Recipe(_FIRST, _replace, noisy=True),
    "zero_out_first_n": _Recipe(_FIRST, _zero),
    "zero_out_top_k": _Recipe(_LARGEST_ABSOLUTE, _zero),
    "flip_sign_first_n": _Recipe(_FIRST, _flip),
    "flip_sign_top_k": _Recipe(_LARGEST_ABSOLUTE, _flip),
    "add_value_first_n": _Recipe(_FIRST, operator.add),
    "add_value_least_k": _Recipe(_SMALLEST, operator.add),
    "sub_value_first_n": _Recipe(_FIRST, operator.sub),
    "sub_value_top_k": _Recipe(_LARGEST, operator.sub),
}

RANDOM_METHODS: Final[frozenset[Method]] = frozenset(
    {"shuffle", *(method for method, recipe in _RECIPES.items() if recipe.noisy)}
)
"""Methods that need a generator or row seeds."""


def corrupt(
    embeddings: Tensor,
    mask: Tensor,
    spec: CorruptionSpec,
    generator: torch.Generator | None = None,
    *,
    row_seeds: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Corrupt the masked rows of one prompt (ECO, arXiv 2406.07933, "Embedding-corrupted prompts").

    As in the paper and its public code, "top_k" of the noise, zero and sign methods is by absolute value;
    `sub_value_top_k` and `add_value_least_k` go by signed value. Where the code leaves a choice: equal values
    rank by lower dimension first; `rand_n` draws its dimensions for every row; the permuting methods move the
    masked rows among themselves, so that one masked row stays as it is, and `shuffle` may by chance give the
    same order. To permute within segments, call once per segment.

    Args:
        embeddings: (T, D) float16, bfloat16 or float32, on any device, in the checkpoint's units. Not
            changed.
        mask: (T,) bool, True where the row is to be corrupted.
        spec: the method and its parameters.
        generator: a CPU generator that the random methods draw from: new noise at every call.
        row_seeds: (T,) integers in 0..2**63-1 instead of a generator. A masked row's noise and random
            dimensions follow from its own seed alone, wherever and in whatever company the row stands; the
            order that `shuffle` gives follows from the seeds of the masked rows in sequence. Seeds of
            unmasked rows are not used.

    Random methods need exactly one of `generator` and `row_seeds`; the others use neither. A seed gives the
    same float32 noise for every dtype and device. Arithmetic is in float32, rounded once; a result beyond the
    dtype's range becomes its largest finite value, since an infinity would make every logit NaN.

    Returns:
        A new tensor (T, D) of the same dtype and device, without gradient. Rows outside the mask, and the
        dimensions of masked rows that the method does not touch, are bit-identical.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, `dims` or a strength vector that does not fit D, missing or superfluous
            randomness, seeds out of range, or NaN or infinity where the method touches a masked row.
    """
    _check_tensors(embeddings, mask)
    positions = mask.to(embeddings.device).nonzero().squeeze(1)  # (M,)
    seeds = _masked_seeds(spec.method, positions.cpu(), len(mask), generator, row_seeds)  # (M,)
    corrupted = embeddings.detach().clone()
    everything = len(positions) == len(mask)
    rows = corrupted if everything else corrupted[positions]  # (M, D), a copy either way
    if spec.method == "reverse_order":
        rows = rows.flip(0)
    elif spec.method == "shuffle":
        digest = hashlib.sha256(seeds.numpy().astype("<i8").tobytes()).digest()
        stream = next(_streams([int.from_bytes(digest[:8], "little")], _ORDER_STREAM))
        rows = rows[torch.from_numpy(stream.permutation(len(rows))).to(rows.device)]
    else:
        rows = _rewritten(rows, spec, seeds)
    if everything:
        return rows
    corrupted[positions] = rows
    return corrupted


def _rewritten(rows: Tensor, spec: CorruptionSpec, seeds: Tensor) -> Tensor:
    """rows (M, D), a copy that may be written to, with the touched dimensions replaced."""
    recipe = _RECIPES[spec.method]
    n = rows.shape[1] if spec.dims is None else spec.dims
    if n > rows.shape[1]:
        raise ValueError(f"dims: {n} is more than the hidden size {rows.shape[1]}; give at most {rows.shape[1]}")
    if isinstance(spec.strength, tuple) and len(spec.strength) != n:
        raise ValueError(
            f"strength: {len(spec.strength)} numbers for {n} touched dimensions; give one, or one for each"
        )
    if len(rows) == 0:
        return rows
    amount = torch.tensor(0.0 if spec.strength is None else spec.strength, dtype=torch.float32)  # () or (n,)
    if recipe.noisy:
        # float32 always: the embeddings' dtype does not change the draw.
        noise = _draw_per_row(seeds, _NOISE_STREAM, lambda rng: rng.standard_normal(n, dtype=np.float32))  # (M, n)
        amount = noise * amount
    dims = recipe.dims(rows, n, seeds) if recipe.dims is not _FIRST else None  # (M, n)
    old_values = (rows[:, :n] if dims is None else rows.gather(1, dims)).float()  # (M, n)
    if not old_values.isfinite().all():
        raise ValueError("embeddings: a masked row holds NaN or infinity where the method touches it")
    values = recipe.action(old_values, amount.to(rows.device))
    limits = torch.finfo(rows.dtype)
    new_values = values.clamp(limits.min, limits.max).to(rows.dtype)
    if dims is None:
        rows[:, :n] = new_values
        return rows
    return rows.scatter_(1, dims, new_values)


def _masked_seeds(
    method: Method,
    positions: Tensor,
    length: int,
    generator: torch.Generator | None,
    row_seeds: Sequence[int] | Tensor | None,
) -> Tensor:
    """One seed per masked row (M,), int64 on the CPU; meaningless zeros where the method is not random."""
    if generator is not None and row_seeds is not None:
        raise ValueError("generator, row_seeds: give one of them, not both")
    if generator is not None:
        if generator.device.type != "cpu":
            raise ValueError(f"generator: expected a CPU generator, got one on {generator.device}")
        if method not in RANDOM_METHODS:
            return torch.zeros_like(positions)
        return torch.empty_like(positions).random_(generator=generator)
    if row_seeds is not None:
        seeds = int64_vector("row_seeds", row_seeds)
        if len(seeds) != length:
            raise ValueError(f"row_seeds: {len(seeds)} seeds for {length} rows; give one per row")
        if (seeds < 0).any():
            raise ValueError("row_seeds: a seed is negative; give integers in 0..2**63-1")
        return seeds[positions]
    if method in RANDOM_METHODS:
        raise ValueError(f"generator, row_seeds: {method} is random and needs one of them")
    return torch.zeros_like(positions)


def _check_tensors(embeddings: Tensor, mask: Tensor) -> None:
    for name, tensor in (("embeddings", embeddings), ("mask", mask)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if embeddings.dtype not in _DTYPES:
        raise TypeError(f"embeddings: expected float16, bfloat16 or float32, got {embeddings.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"embeddings: expected shape (T, D) with D at least 1, got {tuple(embeddings.shape)}")
    if mask.shape != embeddings.shape[:1]:
        raise ValueError(f"mask: expected shape ({len(embeddings)},), got {tuple(mask.shape)}")

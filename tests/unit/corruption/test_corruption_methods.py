"""Every method against a slow per-row reference, and what `corrupt` refuses."""

import hashlib
import math

import numpy as np
import pytest
import torch
from processor_time import seconds_of

from corruption import METHODS, PERMUTING_METHODS, RANDOM_METHODS, STRENGTHLESS_METHODS, CorruptionSpec, corrupt

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def spec_for(method: str, dims: int | None = None, strength: float | list[float] = 2.5) -> CorruptionSpec:
    fields: dict[str, object] = {"method": method}
    if method not in PERMUTING_METHODS:
        fields["dims"] = dims
    if method not in STRENGTHLESS_METHODS:
        fields["strength"] = strength
    return CorruptionSpec.model_validate(fields)


def stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed + purpose * 2**64))


def reference_row(row: torch.Tensor, spec: CorruptionSpec, seed: int) -> torch.Tensor:
    """One row, one dimension at a time, in Python floats rounded to float32 where the contract says so."""
    values = [float(value) for value in row]
    n = spec.dims or len(values)
    method = spec.method
    if method.endswith("first_n"):
        dims = list(range(n))
    elif method.endswith("rand_n"):
        dims = stream(seed, 1).choice(len(values), n, replace=False).tolist()
    elif method == "sub_value_top_k":
        dims = sorted(range(len(values)), key=lambda d: -values[d])[:n]
    elif method == "add_value_least_k":
        dims = sorted(range(len(values)), key=lambda d: values[d])[:n]
    else:
        dims = sorted(range(len(values)), key=lambda d: -abs(values[d]))[:n]
    noise = stream(seed, 0).standard_normal(n, dtype=np.float32)
    new = row.clone()
    for i, d in enumerate(dims):
        strength = spec.strength[i] if isinstance(spec.strength, tuple) else spec.strength
        s = np.float32(0 if strength is None else strength)
        old = np.float32(values[d])
        if method.startswith("rand_noise"):
            result = old + noise[i] * s
        elif method.startswith("set_rand_noise"):
            result = noise[i] * s
        elif method.startswith("zero_out"):
            result = np.float32(0)
        elif method.startswith("flip_sign"):
            result = -old
        elif method.startswith("add_value"):
            result = old + s
        else:
            result = old - s
        new[d] = torch.tensor(float(result), dtype=torch.float32).to(row.dtype)
    return new


def reference(embeddings: torch.Tensor, mask: torch.Tensor, spec: CorruptionSpec, seeds: list[int]) -> torch.Tensor:
    masked = [i for i in range(len(embeddings)) if mask[i]]
    result = embeddings.clone()
    if spec.method in PERMUTING_METHODS:
        if spec.method == "reverse_order":
            sources = masked[::-1]
        else:
            message = b"".join(seeds[i].to_bytes(8, "little") for i in masked)
            seed = int.from_bytes(hashlib.sha256(message).digest()[:8], "little")
            sources = [masked[j] for j in stream(seed, 2).permutation(len(masked))]
        for target, source in zip(masked, sources, strict=True):
            result[target] = embeddings[source]
    else:
        for i in masked:
            result[i] = reference_row(embeddings[i], spec, seeds[i])
    return result


EMBEDDINGS = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([False, True, True, False, True, True, False])
SEEDS = [3, 2**63 - 1, 0, 5, 2**40 + 7, 0, 9]  # rows 2 and 5 share one


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [1, 5, None], ids=lambda dims: f"dims={dims}")
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_reference(method: str, dims: int | None, dtype: torch.dtype) -> None:
    spec = spec_for(method, dims)
    embeddings = EMBEDDINGS.to(dtype)
    corrupted = corrupt(embeddings, MASK, spec, row_seeds=SEEDS)
    torch.testing.assert_close(corrupted, reference(embeddings, MASK, spec, SEEDS), rtol=0, atol=0)
    assert not torch.equal(corrupted, embeddings)


@pytest.mark.parametrize("method", sorted(set(METHODS) - STRENGTHLESS_METHODS))
def test_a_vector_strength_follows_the_order_of_the_chosen_dims(method: str) -> None:
    strength = [0.5, -1.0, 4.0]
    spec = spec_for(method, 3, strength)
    expected = reference(EMBEDDINGS, MASK, spec, SEEDS)
    torch.testing.assert_close(corrupt(EMBEDDINGS, MASK, spec, row_seeds=SEEDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", [method for method in METHODS if method.endswith("_k")])
def test_of_equal_values_the_lower_dimension_counts_first(method: str) -> None:
    row = torch.tensor([[1.0, -0.0, -2.0, 2.0, 0.0, 1.0, 2.0, -2.0]], dtype=torch.bfloat16)
    for dims in range(1, 9):
        spec = spec_for(method, dims, [float(i + 1) for i in range(dims)])
        expected = reference(row, torch.tensor([True]), spec, [4])
        assert torch.equal(corrupt(row, torch.tensor([True]), spec, row_seeds=[4]), expected)


def test_the_noise_of_a_seed_is_the_same_in_every_release() -> None:
    """Replicas of different versions serve one policy: a change here changes what they answer."""
    spec = spec_for("set_rand_noise_first_n", 4, 1.0)
    rows = corrupt(torch.zeros(2, 4), torch.ones(2).bool(), spec, row_seeds=[42, 2**62 + 42])
    expected = [
        [0.18170474, -1.2426393, -0.55155301, 0.36648002],
        [0.0074560642, 0.25451058, -0.5807144, -0.9278363],
    ]
    torch.testing.assert_close(rows, torch.tensor(expected), rtol=0, atol=1e-6)


def test_every_bit_of_a_seed_counts() -> None:
    spec = spec_for("set_rand_noise_first_n", 2, 1.0)
    seeds = [5] + [5 ^ (1 << bit) for bit in range(63)]
    rows = corrupt(torch.zeros(64, 2), torch.ones(64).bool(), spec, row_seeds=seeds)
    assert len({tuple(row) for row in rows.tolist()}) == 64


@pytest.mark.parametrize("from_seeds", [True, False], ids=["row_seeds", "generator"])
def test_noise_is_standard_normal(from_seeds: bool) -> None:
    rows, width = 400, 500
    spec = spec_for("rand_noise_first_n", None, 3.0)
    source = {"row_seeds": list(range(rows))} if from_seeds else {"generator": torch.Generator().manual_seed(0)}
    noise = corrupt(torch.zeros(rows, width), torch.ones(rows).bool(), spec, **source) / 3.0
    bound = 4 / math.sqrt(rows * width)
    assert abs(noise.mean()) < bound
    assert abs(noise.std() - 1) < bound
    assert abs((noise.abs() < 1).float().mean() - math.erf(1 / math.sqrt(2))) < bound
    assert noise.mean(0).abs().max() < 5 / math.sqrt(rows)
    assert noise.mean(1).abs().max() < 5 / math.sqrt(width)


def test_random_dims_differ_between_seeds_and_cover_all() -> None:
    rows = 300
    spec = spec_for("rand_noise_rand_n", 3, 100.0)
    changed = corrupt(torch.zeros(rows, 20), torch.ones(rows).bool(), spec, row_seeds=range(rows)) != 0
    assert (changed.sum(1) == 3).all()
    assert (changed.sum(0) > 20).all()


def test_shuffle_reaches_every_order() -> None:
    embeddings = torch.arange(3.0)[:, None]
    spec = spec_for("shuffle")
    orders = {
        tuple(corrupt(embeddings, torch.ones(3).bool(), spec, row_seeds=[seed, 1, 2])[:, 0].tolist())
        for seed in range(100)
    }
    assert len(orders) == 6


@pytest.mark.parametrize("method", sorted(PERMUTING_METHODS))
def test_one_masked_row_has_nowhere_to_go(method: str) -> None:
    mask = torch.tensor([False, True, False, False, False, False, False])
    assert torch.equal(corrupt(EMBEDDINGS, mask, spec_for(method), row_seeds=SEEDS), EMBEDDINGS)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_mask_changes_nothing(method: str) -> None:
    for length in (0, 7):
        embeddings = EMBEDDINGS[:length]
        corrupted = corrupt(embeddings, torch.zeros(length).bool(), spec_for(method, 2), row_seeds=SEEDS[:length])
        assert torch.equal(corrupted, embeddings)
        assert corrupted.data_ptr() != embeddings.data_ptr() or length == 0


@pytest.mark.parametrize("method", sorted(RANDOM_METHODS))
def test_a_generator_gives_new_noise_at_each_call_and_can_be_replayed(method: str) -> None:
    spec = spec_for(method, 5)
    first, second = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    draws = [corrupt(EMBEDDINGS, MASK, spec, first) for _ in range(5)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1
    for draw in draws:
        assert torch.equal(corrupt(EMBEDDINGS, MASK, spec, second), draw)


@pytest.mark.parametrize("method", sorted(set(METHODS) - RANDOM_METHODS))
def test_deterministic_methods_do_not_use_randomness(method: str) -> None:
    spec = spec_for(method, 5)
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    expected = corrupt(EMBEDDINGS, MASK, spec)
    assert torch.equal(corrupt(EMBEDDINGS, MASK, spec, generator), expected)
    assert torch.equal(corrupt(EMBEDDINGS, MASK, spec, row_seeds=SEEDS), expected)
    assert torch.equal(generator.get_state(), state)


def test_no_method_touches_the_global_generators() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    for method in METHODS:
        corrupt(EMBEDDINGS, MASK, spec_for(method), torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_beyond_the_dtype_becomes_its_largest_value(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    embeddings = torch.full((1, 2), largest, dtype=dtype)
    added = corrupt(embeddings, torch.tensor([True]), spec_for("add_value_first_n", 1, 3e38))
    assert added.tolist() == [[largest, largest]]
    noisy = corrupt(embeddings, torch.ones(1).bool(), spec_for("rand_noise_first_n", 2, 3e38), row_seeds=[1])
    assert noisy.isfinite().all()


def test_seeds_may_be_a_tensor_or_any_sequence() -> None:
    spec = spec_for("rand_noise_first_n", 2)
    expected = corrupt(EMBEDDINGS, MASK, spec, row_seeds=SEEDS)
    for seeds in (torch.tensor(SEEDS), tuple(SEEDS), np.array(SEEDS)):
        assert torch.equal(corrupt(EMBEDDINGS, MASK, spec, row_seeds=seeds), expected)


def test_gradients_stop_here() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    assert not corrupt(embeddings, MASK, spec_for("zero_out_first_n", 2)).requires_grad


NOISE = spec_for("rand_noise_first_n", 2)
GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": EMBEDDINGS.tolist()}, TypeError, "embeddings: expected a tensor, got list"),
        ({"embeddings": EMBEDDINGS.double()}, TypeError, "embeddings: .* got torch.float64"),
        ({"embeddings": EMBEDDINGS.long()}, TypeError, "embeddings: .* got torch.int64"),
        ({"embeddings": EMBEDDINGS[None]}, ValueError, r"embeddings: expected shape .* got \(1, 7, 12\)"),
        ({"embeddings": EMBEDDINGS[:, :0]}, ValueError, "embeddings: expected shape"),
        ({"embeddings": EMBEDDINGS * math.nan}, ValueError, "embeddings: a masked row holds NaN"),
        ({"mask": MASK.tolist()}, TypeError, "mask: expected a tensor, got list"),
        ({"mask": MASK.long()}, TypeError, "mask: expected bool, got torch.int64"),
        ({"mask": MASK[:-1]}, ValueError, r"mask: expected shape \(7,\), got \(6,\)"),
        ({"mask": MASK[:, None]}, ValueError, r"mask: expected shape \(7,\), got \(7, 1\)"),
        ({"row_seeds": None}, ValueError, "rand_noise_first_n is random and needs one of them"),
        ({"row_seeds": None, "spec": spec_for("shuffle")}, ValueError, "shuffle is random"),
        ({"generator": GENERATOR}, ValueError, "generator, row_seeds: give one of them, not both"),
        ({"row_seeds": SEEDS[:-1]}, ValueError, "row_seeds: 6 seeds for 7 rows"),
        ({"row_seeds": [-1, *SEEDS[1:]]}, ValueError, "row_seeds: a seed is negative"),
        ({"row_seeds": [2**63, *SEEDS[1:]]}, ValueError, r"row_seeds: expected integers below 2\*\*63"),
        ({"row_seeds": [2**200, *SEEDS[1:]]}, ValueError, r"row_seeds: expected integers below 2\*\*63"),
        ({"row_seeds": [1.0] * 7}, TypeError, "row_seeds: expected integers"),
        ({"row_seeds": [True] * 7}, TypeError, "row_seeds: expected integers"),
        ({"row_seeds": [SEEDS]}, ValueError, "row_seeds: expected one dimension"),
        ({"spec": spec_for("rand_noise_first_n", 13)}, ValueError, "dims: 13 is more than the hidden size"),
        (
            {"spec": spec_for("add_value_first_n", None, [1.0, 2.0])},
            ValueError,
            "strength: 2 numbers for 12 touched dimensions",
        ),
    ],
)
def test_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    valid = {"embeddings": EMBEDDINGS, "mask": MASK, "spec": NOISE, "row_seeds": SEEDS}
    with pytest.raises(error, match=message):
        corrupt(**(valid | arguments))  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_even_when_no_row_is_masked() -> None:
    with pytest.raises(ValueError, match="dims: 13"):
        corrupt(EMBEDDINGS, torch.zeros(7).bool(), spec_for("zero_out_first_n", 13))


def test_not_a_number_in_an_unmasked_row_is_left_alone() -> None:
    embeddings = EMBEDDINGS.clone()
    embeddings[0] = math.nan
    assert corrupt(embeddings, MASK, NOISE, row_seeds=SEEDS)[0].isnan().all()


@pytest.mark.parametrize("method", ["rand_noise_rand_n", "rand_noise_top_k"])
def test_a_long_prompt_takes_well_under_a_second(method: str) -> None:
    embeddings = torch.randn(4096, 1024)
    mask = torch.ones(4096).bool()
    # About 0.2 s; a loop over tokens takes minutes.
    assert seconds_of(lambda: corrupt(embeddings, mask, spec_for(method, 16), row_seeds=range(4096))) < 5

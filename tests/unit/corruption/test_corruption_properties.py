"""What holds for every method, shape, mask and dtype."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from corruption import METHODS, CorruptionSpec, corrupt

STRENGTHLESS = {"zero_out_first_n", "zero_out_top_k", "flip_sign_first_n", "flip_sign_top_k"}
PERMUTING = {"reverse_order", "shuffle"}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

properties = settings(deadline=None, max_examples=150)


class Case:
    def __init__(self, draw: DrawFn) -> None:
        length, width = draw(st.integers(1, 9)), draw(st.integers(1, 40))
        method = draw(st.sampled_from(METHODS))
        fields: dict[str, object] = {"method": method}
        if method not in PERMUTING:
            fields["dims"] = draw(st.none() | st.integers(1, width))
        if method not in PERMUTING | STRENGTHLESS:
            fields["strength"] = draw(st.floats(-1e6, 1e6))
        self.spec = CorruptionSpec.model_validate(fields)
        values = torch.randn(length, width, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        self.embeddings = values.to(draw(st.sampled_from(list(BITS))))
        self.mask = torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        seeds = st.integers(0, 2**63 - 1)
        self.seeds = draw(st.lists(seeds, min_size=length, max_size=length))

    def __repr__(self) -> str:
        shape, dtype = tuple(self.embeddings.shape), self.embeddings.dtype
        return f"Case({self.spec!r}, {shape}, {dtype}, mask={self.mask.tolist()}, seeds={self.seeds})"

    def corrupt(self) -> torch.Tensor:
        return corrupt(self.embeddings, self.mask, self.spec, row_seeds=self.seeds)


cases = st.composite(Case)()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.dtype])


@properties
@given(cases)
def test_only_masked_rows_change_and_the_input_does_not(case: Case) -> None:
    before, mask_before = case.embeddings.clone(), case.mask.clone()
    corrupted = case.corrupt()
    assert torch.equal(bits(case.embeddings), bits(before))
    assert torch.equal(case.mask, mask_before)
    assert corrupted.shape == before.shape
    assert corrupted.dtype == before.dtype
    assert torch.equal(bits(corrupted)[~case.mask], bits(before)[~case.mask])
    assert corrupted.isfinite().all()


@properties
@given(cases)
def test_no_more_than_dims_values_of_a_row_change(case: Case) -> None:
    changed = (bits(case.corrupt()) != bits(case.embeddings)).sum(1)
    assert (changed <= (case.spec.dims or case.embeddings.shape[1])).all()


@properties
@given(cases)
def test_the_same_call_gives_the_same_bits(case: Case) -> None:
    assert torch.equal(bits(case.corrupt()), bits(case.corrupt()))


@properties
@given(cases)
def test_a_row_depends_on_itself_and_its_seed_alone(case: Case) -> None:
    if case.spec.method in PERMUTING:
        return
    corrupted = case.corrupt()
    for i in case.mask.nonzero().flatten().tolist():
        alone = corrupt(case.embeddings[i : i + 1], torch.tensor([True]), case.spec, row_seeds=[case.seeds[i]])
        assert torch.equal(bits(alone[0]), bits(corrupted[i]))


@properties
@given(cases, st.integers(0, 2**63 - 1))
def test_unmasked_rows_and_their_seeds_do_not_matter(case: Case, other_seed: int) -> None:
    other = case.embeddings.clone()
    other[~case.mask] = 7.5
    seeds = [seed if masked else other_seed for seed, masked in zip(case.seeds, case.mask.tolist(), strict=True)]
    corrupted = corrupt(other, case.mask, case.spec, row_seeds=seeds)
    assert torch.equal(bits(corrupted)[case.mask], bits(case.corrupt())[case.mask])


@properties
@given(cases)
def test_unmasked_rows_around_a_row_do_not_matter(case: Case) -> None:
    """Later turns of a conversation, or text before it, leave the masked rows as they were."""
    extra = torch.ones(2, case.embeddings.shape[1], dtype=case.embeddings.dtype)
    longer = corrupt(
        torch.cat([extra, case.embeddings, extra]),
        torch.cat([torch.zeros(2).bool(), case.mask, torch.zeros(2).bool()]),
        case.spec,
        row_seeds=[8, 8, *case.seeds, 8, 8],
    )
    assert torch.equal(bits(longer[2:-2]), bits(case.corrupt()))


@properties
@given(cases)
def test_permuting_keeps_the_masked_rows_as_a_set(case: Case) -> None:
    if case.spec.method not in PERMUTING:
        return
    before, after = case.embeddings[case.mask].float(), case.corrupt()[case.mask].float()
    assert sorted(before.tolist()) == sorted(after.tolist())


@properties
@given(cases)
def test_the_noise_does_not_depend_on_the_dtype(case: Case) -> None:
    if case.spec.method != "set_rand_noise_first_n":
        return
    wide = corrupt(case.embeddings.float(), case.mask, case.spec, row_seeds=case.seeds)
    limits = torch.finfo(case.embeddings.dtype)
    narrow = wide.clamp(limits.min, limits.max).to(case.embeddings.dtype)
    assert torch.equal(bits(case.corrupt()), bits(narrow))

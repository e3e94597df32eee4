"""What holds for every method, shape, mask and dtype."""

from collections.abc import Callable, Collection

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from corruption import METHODS, PERMUTING_METHODS, STRENGTHLESS_METHODS, CorruptionSpec, corrupt

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SEEDS = st.integers(0, 2**63 - 1)


class Case:
    def __init__(self, draw: DrawFn, methods: Collection[str]) -> None:
        length, width = draw(st.integers(1, 9)), draw(st.integers(1, 40))
        method = draw(st.sampled_from(sorted(methods)))
        fields: dict[str, object] = {"method": method}
        if method not in PERMUTING_METHODS:
            fields["dims"] = draw(st.none() | st.integers(1, width))
        if method not in STRENGTHLESS_METHODS:
            fields["strength"] = draw(st.floats(-1e6, 1e6))
        self.spec = CorruptionSpec.model_validate(fields)
        values = torch.randn(length, width, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        self.embeddings = values.to(draw(st.sampled_from(list(BITS))))
        self.mask = torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        self.seeds = draw(st.lists(SEEDS, min_size=length, max_size=length))

    def __repr__(self) -> str:
        shape, dtype = tuple(self.embeddings.shape), self.embeddings.dtype
        return f"Case({self.spec!r}, {shape}, {dtype}, mask={self.mask.tolist()}, seeds={self.seeds})"

    def corrupt(self) -> torch.Tensor:
        return corrupt(self.embeddings, self.mask, self.spec, row_seeds=self.seeds)


def for_cases(methods: Collection[str], examples: int = 150) -> Callable[[Callable[[Case], None]], Callable[[], None]]:
    cases = st.composite(Case)(methods)
    return lambda check: settings(deadline=None, max_examples=examples)(given(cases)(check))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.dtype])


@for_cases(METHODS)
def test_only_masked_rows_change_and_the_input_does_not(case: Case) -> None:
    before, mask_before = case.embeddings.clone(), case.mask.clone()
    corrupted = case.corrupt()
    assert torch.equal(bits(case.embeddings), bits(before))
    assert torch.equal(case.mask, mask_before)
    assert (corrupted.shape, corrupted.dtype) == (before.shape, before.dtype)
    assert corrupted.isfinite().all()
    changed = (bits(corrupted) != bits(before)).sum(1)
    assert (changed[~case.mask] == 0).all()
    assert (changed <= (case.spec.dims or before.shape[1])).all()
    assert torch.equal(bits(case.corrupt()), bits(corrupted))


@for_cases(METHODS)
def test_unmasked_rows_and_their_seeds_do_not_matter(case: Case) -> None:
    """Nor do more of them: later turns of a conversation, or text before it."""
    other = case.embeddings.clone()
    other[~case.mask] = 7.5
    seeds = [seed if masked else seed ^ 5 for seed, masked in zip(case.seeds, case.mask.tolist(), strict=True)]
    extra, unmasked = torch.ones(2, other.shape[1], dtype=other.dtype), torch.zeros(2).bool()
    longer = corrupt(
        torch.cat([extra, other, extra]),
        torch.cat([unmasked, case.mask, unmasked]),
        case.spec,
        row_seeds=[8, 8, *seeds, 8, 8],
    )
    assert torch.equal(bits(longer[2:-2])[case.mask], bits(case.corrupt())[case.mask])


@for_cases(set(METHODS) - PERMUTING_METHODS, examples=75)
def test_a_row_depends_on_itself_and_its_seed_alone(case: Case) -> None:
    corrupted = case.corrupt()
    for i in case.mask.nonzero().flatten().tolist():
        alone = corrupt(case.embeddings[i : i + 1], torch.tensor([True]), case.spec, row_seeds=[case.seeds[i]])
        assert torch.equal(bits(alone[0]), bits(corrupted[i]))


@for_cases(PERMUTING_METHODS, examples=50)
def test_permuting_keeps_the_masked_rows_as_a_set(case: Case) -> None:
    before, after = case.embeddings[case.mask].float(), case.corrupt()[case.mask].float()
    assert sorted(before.tolist()) == sorted(after.tolist())


@for_cases({"set_rand_noise_first_n"}, examples=50)
def test_the_noise_does_not_depend_on_the_dtype(case: Case) -> None:
    wide = corrupt(case.embeddings.float(), case.mask, case.spec, row_seeds=case.seeds)
    limits = torch.finfo(case.embeddings.dtype)
    narrow = wide.clamp(limits.min, limits.max).to(case.embeddings.dtype)
    assert torch.equal(bits(case.corrupt()), bits(narrow))

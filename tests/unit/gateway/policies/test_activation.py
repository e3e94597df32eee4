"""On which requests a policy acts, and what a roll back goes to."""

import numpy as np
import pytest
from pydantic import ValidationError

from gateway.policies.activation import Activation, Entry, Record, Scopes

SECRET = bytes(32)


def scopes(*activations: Activation, served: tuple[str, ...] = ("base", "alias")) -> Scopes:
    return Scopes([f"p{number}" for number in range(len(activations))], activations, served, SECRET)


def record(*activations: Activation) -> Record:
    found = Record()
    for activation in activations:
        entry = Entry(
            serial=found.serial + 1, at="", by="", event="activated", activation=activation, digest=activation.digest
        )
        found = found.then(entry, activation)
    return found


def test_without_any_scope_all_act() -> None:
    assert scopes(Activation(), Activation(action="observe")).applies([1, 2], tenant="acme", adapter="x") is None


def test_tenants() -> None:
    some = scopes(Activation(tenants=("acme", "bolt")), Activation())
    assert some.applies([1], tenant="acme").tolist() == [True, True]  # type: ignore[union-attr]
    assert some.applies([1], tenant="other").tolist() == [False, True]  # type: ignore[union-attr]


def test_a_request_of_nobody_known_is_everybodys() -> None:
    assert scopes(Activation(tenants=("acme",))).applies([1]).tolist() == [True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("adapter", "acts"), [(None, [True, False, True]), ("french", [False, True, True]), ("other", [False, False, True])]
)
def test_models_are_adapters_or_any_served_name(adapter: str | None, acts: list[bool]) -> None:
    some = scopes(Activation(models=("alias",)), Activation(models=("french",)), Activation())
    assert some.applies([1], adapter=adapter).tolist() == acts  # type: ignore[union-attr]


def test_a_share_is_of_prompts_and_grows() -> None:
    prompts = np.random.default_rng(0).integers(0, 50_000, (2000, 12)).tolist()

    def inside(share: float) -> set[int]:
        some = scopes(Activation(share=share))
        return {n for n, prompt in enumerate(prompts) if share == 100 or some.applies(prompt).all()}  # type: ignore[union-attr]

    quarter, half = inside(25), inside(50)
    assert len(quarter) / len(prompts) == pytest.approx(0.25, abs=0.04)
    assert len(half) / len(prompts) == pytest.approx(0.5, abs=0.04)
    assert quarter < half == inside(50)


def test_shares_of_two_policies_are_not_the_same_prompts() -> None:
    some = scopes(Activation(share=50), Activation(share=50))
    both = np.array([some.applies([n, n + 1]) for n in range(400)])
    assert both.all(axis=1).mean() == pytest.approx(0.25, abs=0.08)


def test_the_share_is_the_servers_own_secret() -> None:
    there = Scopes(["p0"], [Activation(share=50)], ["m"], b"1" * 32)
    here = scopes(Activation(share=50))
    assert any((there.applies([n]) != here.applies([n])).any() for n in range(50))


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 101}, {"digest": "abc"}, {"tenants": []}, {"action": "pass"}, {"colour": "red"}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Activation.model_validate(wrong)


def test_a_roll_back_goes_to_the_last_that_differs() -> None:
    observed, half, whole = Activation(action="observe", digest="a" * 64), Activation(share=50, digest="a" * 64), None
    whole = Activation(digest="a" * 64)
    there = record(observed, half, whole, whole)
    assert there.before() is not None
    assert there.before().activation == half  # type: ignore[union-attr]


def test_a_second_roll_back_goes_further() -> None:
    first, second, third = (Activation(share=share) for share in (10, 50, 100))
    there = record(first, second, third)
    entry = there.before()
    assert entry is not None
    back = Entry(
        serial=4, at="", by="", event="rolled back", activation=entry.activation, digest=None, restores=entry.serial
    )
    there = there.then(back, entry.activation)
    assert there.before().activation == first  # type: ignore[union-attr]


def test_of_one_activation_there_is_no_way_back() -> None:
    assert Record().before() is None
    assert record(Activation()).before() is None

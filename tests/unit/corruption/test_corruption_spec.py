import json
import math

import pytest
from pydantic import ValidationError

from corruption import METHODS, PERMUTING_METHODS, STRENGTHLESS_METHODS, CorruptionSpec

STRENGTHLESS = {
    "zero_out_first_n",
    "zero_out_top_k",
    "flip_sign_first_n",
    "flip_sign_top_k",
    "reverse_order",
    "shuffle",
}


def test_there_are_fourteen_methods_of_which_six_take_no_strength() -> None:
    assert len(set(METHODS)) == 14
    assert STRENGTHLESS_METHODS == STRENGTHLESS
    assert {"reverse_order", "shuffle"} == PERMUTING_METHODS
    for method in METHODS:
        strength = None if method in STRENGTHLESS else 1.5
        spec = CorruptionSpec.model_validate({"method": method, "strength": strength})
        assert (spec.dims, spec.scope) == (None, "content")


def test_survives_json_and_back() -> None:
    spec = CorruptionSpec(method="add_value_first_n", dims=3, strength=(1, -2.5, 0), scope="entities")
    assert CorruptionSpec.model_validate_json(json.dumps(spec.model_dump(mode="json"))) == spec
    assert CorruptionSpec.model_validate(spec.model_dump()) == spec


def test_a_list_becomes_immutable() -> None:
    spec = CorruptionSpec.model_validate({"method": "add_value_first_n", "strength": [1, 2]})
    assert spec.strength == (1.0, 2.0)
    with pytest.raises(ValidationError, match="frozen"):
        spec.dims = 2
    assert hash(spec) == hash(spec.model_copy())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "gaussian", "strength": 1.0}, "method"),
        ({"strength": 1.0}, "method"),
        ({"method": "shuffle", "seed": 1}, "seed"),
        ({"method": "zero_out_first_n", "scope": "all"}, "scope"),
        ({"method": "zero_out_first_n", "dims": 0}, "dims"),
        ({"method": "zero_out_first_n", "dims": True}, "dims"),
        ({"method": "zero_out_first_n", "dims": 1.0}, "dims"),
        ({"method": "zero_out_first_n", "dims": "2"}, "dims"),
        ({"method": "reverse_order", "dims": 2}, "dims: reverse_order moves whole rows and takes none"),
        ({"method": "shuffle", "dims": 2}, "dims: shuffle moves whole rows and takes none"),
        ({"method": "zero_out_top_k", "strength": 1.0}, "strength: zero_out_top_k takes none; remove"),
        ({"method": "shuffle", "strength": 1.0}, "strength: shuffle takes none; remove"),
        ({"method": "rand_noise_first_n"}, "strength: rand_noise_first_n needs one"),
        ({"method": "add_value_first_n", "strength": math.nan}, "strength: nan is not a finite"),
        ({"method": "add_value_first_n", "strength": -math.inf}, "strength: -inf is not a finite"),
        ({"method": "add_value_first_n", "strength": 1e39}, "strength: 1e[+]39 is not a finite"),
        ({"method": "add_value_first_n", "strength": 10**400}, "strength: .* is not a finite"),
        ({"method": "add_value_first_n", "strength": [1.0, math.nan]}, "strength: nan is not a finite"),
        ({"method": "add_value_first_n", "strength": []}, "strength: the list is empty"),
        ({"method": "add_value_first_n", "strength": "1.0"}, "strength: expected a number .* got str"),
        ({"method": "add_value_first_n", "strength": True}, "strength: expected a number .* got bool"),
        ({"method": "add_value_first_n", "strength": [[1.0]]}, "strength: expected a number .* got list"),
        ({"method": "add_value_first_n", "dims": 2, "strength": [1.0]}, "strength: 1 numbers for dims=2"),
    ],
)
def test_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorruptionSpec.model_validate(fields)

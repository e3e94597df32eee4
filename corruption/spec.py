"""What to do to a masked row: the method, how many dimensions it touches, and how strongly.

A spec is data that a policy bundle carries. It knows nothing about a model: that `dims` fits the hidden size
is checked where the rows are (`corrupt`).
"""

import math
from numbers import Real
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Method = Literal[
    "rand_noise_first_n",
    "rand_noise_rand_n",
    "rand_noise_top_k",
    "zero_out_first_n",
    "zero_out_top_k",
    "flip_sign_first_n",
    "flip_sign_top_k",
    "sub_value_first_n",
    "add_value_first_n",
    "sub_value_top_k",
    "add_value_least_k",
    "set_rand_noise_first_n",
    "reverse_order",
    "shuffle",
]

METHODS: Final[tuple[Method, ...]] = get_args(Method)
"""The fourteen method names of ECO (arXiv 2406.07933), as its public code spells them."""

PERMUTING_METHODS: Final[frozenset[Method]] = frozenset({"reverse_order", "shuffle"})
"""Methods that move whole rows: they take neither `dims` nor `strength`."""

ZEROING_METHODS: Final[frozenset[Method]] = frozenset({"zero_out_first_n", "zero_out_top_k"})
"""Methods that may leave rows of zeros."""

STRENGTHLESS_METHODS: Final[frozenset[Method]] = (
    PERMUTING_METHODS
    | ZEROING_METHODS
    | {
        "flip_sign_first_n",
        "flip_sign_top_k",
    }
)
"""Methods that take no `strength`."""

_FLOAT32_MAX: Final = 3.4028234663852886e38


class CorruptionSpec(BaseModel):
    """How masked embedding rows are corrupted (ECO, arXiv 2406.07933, "Embedding-corrupted prompts", where σ
    is what `strength` is here).

    Immutable; unknown fields are refused. Raises pydantic's `ValidationError`, a ValueError, on a bad field.
    `model_dump(mode="json")` gives plain lists and numbers, as YAML and JSON want them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method

    dims: Annotated[int, Field(ge=1, strict=True)] | None = None
    """How many dimensions of each masked row are touched. None: all of them. Refused by `reverse_order` and
    `shuffle`, which move whole rows."""

    strength: float | tuple[float, ...] | None = None
    """The scale of the noise, or the value added or subtracted, in the units of the checkpoint's embedding
    rows.

    One number for every touched dimension, or one per touched dimension: the i-th applies to the i-th
    dimension that the method chooses (first_n: dimension i; top_k and least_k: the i-th in rank; rand_n: the
    i-th drawn). Zero changes nothing in the methods that add. Required by the methods that use it, refused by
    the others."""

    scope: Literal["content", "entities"] = "content"
    """Which tokens of a flagged segment are masked: all of its content, or only the entity tokens in it.
    Whoever makes the mask reads this; `corrupt` takes the mask as it comes."""

    @field_validator("strength", mode="before")
    @classmethod
    def _finite_strength(cls, value: object) -> object:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("strength: the list is empty; give one number per touched dimension")
            return tuple(_finite_number(item) for item in value)
        return _finite_number(value)

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> Self:
        if self.dims is not None and self.method in PERMUTING_METHODS:
            raise ValueError(f"dims: {self.method} moves whole rows and takes none; remove the field")
        if self.strength is not None and self.method in STRENGTHLESS_METHODS:
            raise ValueError(f"strength: {self.method} takes none; remove the field")
        if self.strength is None and self.method not in STRENGTHLESS_METHODS:
            raise ValueError(f"strength: {self.method} needs one; give a number or a list of numbers")
        if self.dims is not None and isinstance(self.strength, tuple) and len(self.strength) != self.dims:
            raise ValueError(
                f"strength: {len(self.strength)} numbers for dims={self.dims}; give one, or one per dimension"
            )
        return self


def _finite_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"strength: expected a number or a list of numbers, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not abs(number) <= _FLOAT32_MAX:  # so put, NaN fails too
        raise ValueError(f"strength: {number} is not a finite 32-bit float; give a finite number")
    return number

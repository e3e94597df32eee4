"""What a corruption search may try, how hard it may try, and what it asks of an objective. Nothing is measured here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from corruption import PERMUTING_METHODS, STRENGTHLESS_METHODS, CorruptionSpec, Method

#: Strengths are rounded to this many significant digits: finer than any metric tells apart, and readable in a policy.
_STRENGTH_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """One method on one number of dimensions (None: all); what is left to find is its strength."""

    method: Method
    dims: int | None
    touched_dims: int
    scope: Literal["content", "entities"] = "content"

    @property
    def takes_strength(self) -> bool:
        return self.method not in STRENGTHLESS_METHODS

    def spec(self, strength: float | tuple[float, ...] | None = None) -> CorruptionSpec:
        return CorruptionSpec(method=self.method, dims=self.dims, strength=strength, scope=self.scope)

    def owns(self, spec: CorruptionSpec) -> bool:
        return (spec.method, spec.dims) == (self.method, self.dims)

    def size(self, spec: CorruptionSpec) -> float:
        """L2 norm of the strengths over the dimensions a row has touched: comparable between scalar and vector.

        Infinite for a method without strength, which knows no small corruption.
        """
        if spec.strength is None:
            return math.inf
        if isinstance(spec.strength, tuple):
            return math.hypot(*spec.strength)
        return abs(spec.strength) * math.sqrt(self.touched_dims)

    def __str__(self) -> str:
        return _in_words(self.method, self.dims)


class SearchSpace(BaseModel):
    """The methods and numbers of dimensions to try: every method with every number of dimensions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("rand_noise_first_n",)

    dims: Annotated[tuple[Annotated[int, Field(ge=1, strict=True)] | None, ...], Field(min_length=1)] = (None,)
    """How many dimensions of each row are touched; None: all. The permuting methods move whole rows and are
    tried once, whatever stands here."""

    hidden_size: Annotated[int, Field(ge=1)]
    """Width of the model's embedding rows."""

    scope: Literal["content", "entities"] = "content"

    @model_validator(mode="after")
    def _distinct_and_within_the_model(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods: one is named twice; name each once")
        counts = [self.hidden_size if dims is None else dims for dims in self.dims]
        if max(counts) > self.hidden_size:
            raise ValueError(f"dims: {max(counts)} is more than the model's hidden size {self.hidden_size}")
        if len(set(counts)) < len(counts):
            raise ValueError(f"dims: a number comes twice (all dimensions are {self.hidden_size}); give each once")
        return self

    def candidates(self) -> tuple[Candidate, ...]:
        """Every (method, dims) there is to try, in the order given."""
        pairs = [
            (method, dims)
            for method in self.methods
            for dims in ((None,) if method in PERMUTING_METHODS else self.dims)
        ]
        return tuple(Candidate(method, dims, dims or self.hidden_size, self.scope) for method, dims in pairs)


class SearchSettings(BaseModel):
    """How a search goes about it. The same settings, space and objective give the same spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tolerance: Annotated[float, Field(gt=0)] = 0.02
    """How far from the retained value is near enough, in the metric's units."""

    aim: Literal["least", "nearest"] = "least"
    """least: the least corruption that comes within the tolerance. nearest: what comes nearest, within it or not; for a
    distance of which strength takes away a part only."""

    min_strength: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    max_strength: Annotated[float, Field(gt=0, le=1e30)] = 100.0
    """Bounds of every strength, scalar or one of a vector, in the units of the embedding rows."""

    sweep_points: Annotated[int, Field(ge=2, le=1000)] = 6
    """Strengths of each candidate's first look, evenly spaced on a log scale from bound to bound."""

    screen_examples: Annotated[int, Field(ge=1)] | None = 20
    """How many of the examples the first look is made on, with one noise draw; what it finds is then measured on all
    examples with all draws. None, or more than half of the examples: everything is measured on all."""

    refined_candidates: Annotated[int, Field(ge=1)] = 2
    """How many of the candidates, the most promising after the sweep, are refined."""

    refine_steps: Annotated[int, Field(ge=0)] = 10
    """Most steps of a candidate's refinement. One strength is measured in a step, two where a slope is needed."""

    vector_steps: Annotated[int, Field(ge=0)] = 0
    """Most steps of the search for one strength per dimension, two evaluations each. It is for what a single
    strength cannot reach: no step is taken where one has. 0: never."""

    vector_step_size: Annotated[float, Field(gt=0, le=5)] = 0.5
    """How far the first such step moves a log-strength, root mean square over dimensions. Later ones grow by
    1.3 after a success and shrink by 0.8 after a failure."""

    noise_seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2)
    """One noise draw each, the same for every evaluation (common random numbers)."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the random directions in the vector search."""

    budget_evaluations: Annotated[int, Field(ge=1)] | None = None
    """Most corruptions measured, None: as many as the steps ask for. What is read from a trajectory counts."""

    budget_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no measurement is started, None: no limit. A measurement under way is not cut short, and
    where none was made on all examples yet, one is."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.min_strength >= self.max_strength:
            raise ValueError(f"max_strength: {self.max_strength:g} is not above min_strength {self.min_strength:g}")
        if len(set(self.noise_seeds)) < len(self.noise_seeds):
            raise ValueError("noise_seeds: a seed comes twice; a draw counted twice hides the noise")
        return self

    def sweep_strengths(self) -> tuple[float, ...]:
        ratio = self.max_strength / self.min_strength
        last = self.sweep_points - 1
        return tuple(self.rounded(self.min_strength * ratio ** (i / last)) for i in range(self.sweep_points))

    def rounded(self, strength: float) -> float:
        """`strength` within the bounds, and with as many digits as are worth writing down."""
        return min(max(float(f"{strength:.{_STRENGTH_DIGITS}g}"), self.min_strength), self.max_strength)


def label_of(spec: CorruptionSpec) -> str:
    """A spec in words, as reasons and legends have it."""
    name = _in_words(spec.method, spec.dims)
    if spec.strength is None:
        return name
    if isinstance(spec.strength, tuple):
        least, most = min(spec.strength), max(spec.strength)
        return f"{name} at {len(spec.strength)} strengths from {least:.4g} to {most:.4g}"
    return f"{name} at strength {spec.strength:.4g}"


def _in_words(method: Method, dims: int | None) -> str:
    if method in PERMUTING_METHODS:
        return method
    return f"{method} on all dimensions" if dims is None else f"{method} on {dims} dimension{'s' if dims > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One corruption, measured on the forget set.

    Attributes:
        value: the metric's mean over examples and noise seeds.
        distance: what the search minimises, 0 or more: how far the corrupted model is from one that never learned.
        gap: `value` minus the retained value; above 0 the model still knows too much.
        standard_error: of `value`, over the noise seeds (0 for one seed or a method without noise).
        gibberish: 0 or more, how much worse formed the outputs are than the uncorrupted model's; 0 where the
            metric generates nothing.
        forward_passes: model forward passes spent (one per generated token and batch).
        seconds: wall time spent; for several specs measured in one call, their equal share.
        two_sided: whether the distance counts what is below the retained value as it counts what is above.
    """

    value: float
    distance: float
    gap: float
    standard_error: float
    gibberish: float
    forward_passes: int
    seconds: float
    two_sided: bool = True


class Objective(Protocol):
    """A metric of the corrupted model on the forget set, and its retained value."""

    @property
    def retained_value(self) -> float:
        """The metric of a model that never learned the forget set, or what stands in for it."""
        ...

    def measure(self, specs: Sequence[CorruptionSpec], noise_seeds: Sequence[int]) -> list[Measurement]:
        """One measurement for each spec, all in one batch. The same seeds give the same noise to every spec."""
        ...

    def part(self, size: int, seed: int) -> "Self | None":
        """The same objective on `size` of its examples, drawn with the seed, with their own retained value.

        None where it would save too little to be worth it.
        """
        ...

    def describe(self) -> Mapping[str, object]:
        """JSON values that identify the objective (metric, data digests, model): a resumed search checks them."""
        ...

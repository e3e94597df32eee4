"""Search for the corruption at which a model scores as one that never learned.

ECO (arXiv 2406.07933, section 3.3) minimises the distance between a metric of the corrupted model and its retained
value by zeroth-order steps. Here the same noise stands on both sides of every difference (common random numbers), and
as an evaluation costs a pass of a language model over the forget set, few are made:

1. a first look at log-spaced strengths of every method and number of dimensions, on a part of the examples
   (`optimizer.search.steps.screen`); the most promising are then measured on all examples, where the part's curve says;
2. where the part finds nothing, or there is none, a coarse sweep of strengths on all examples, one call of the
   objective for each method and number of dimensions; the most promising are refined: where the metric crosses the
   retained value by regula falsi, safeguarded by bisection, else by two-sided differences about the nearest point;
3. where no single strength reaches the retained value, and if asked for, one strength per dimension: two-sided
   differences along random unit directions of the log-strengths.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import SearchError
from optimizer.search.evaluator import BudgetSpentError, Evaluator, OnEvaluation, Trajectory
from optimizer.search.result import (
    NARROWEST_RATIO,
    SearchResult,
    choose,
    conclude,
    crossing,
    is_done,
    is_settled,
    promise,
    residual,
    scalar_points,
)
from optimizer.search.space import Candidate, Objective, SearchSettings, SearchSpace
from optimizer.search.steps import (
    Bracket,
    halfway_to_neighbours,
    likeliest_strength,
    next_strength,
    screen,
    screened_points,
    unit_directions,
)

#: A two-sided difference whose sides differ from the centre by less than this share of the tolerance is at the bottom.
_WORTHWHILE = 0.1
_GROWTH, _DECAY = 1.3, 0.8
#: A vector step below this, in log-strength, changes no strength by as much as one per cent.
_SMALLEST_STEP = 0.01


def search_corruption(
    objective: Objective,
    space: SearchSpace,
    settings: SearchSettings | None = None,
    *,
    trajectory: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_evaluation: OnEvaluation | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Find the least corruption that brings the objective's distance within the tolerance, or what comes nearest.

    Args:
        objective: what is measured.
        space: methods and numbers of dimensions.
        settings: None: the defaults.
        trajectory: JSON-lines file that gets every evaluation as soon as it is made; None: none is kept.
        resume: take up the trajectory where it stops. Its evaluations are not measured again, and the search goes on
            as if it had never stopped. Budgets may differ from the first run's; all else must be the same.
        overwrite: discard an existing trajectory.
        on_evaluation: told of every evaluation, with the number done and about how many there will be.
        clock: seconds, monotonic.

    Raises:
        SearchError: the trajectory cannot be used, or a budget is too small for the sweep (both before anything is
            measured), or the objective gives what is not a measurement.
    """
    settings = settings or SearchSettings()
    candidates = space.candidates()
    part = None if settings.screen_examples is None else objective.part(settings.screen_examples, settings.seed)
    strengths = sum(candidate.takes_strength for candidate in candidates)
    # A sweep on a part is followed by one evaluation on everything.
    swept = sum(len(_sweep_of(c, settings)) for c in candidates) + (part is not None and strengths > 0)
    if settings.budget_evaluations is not None and settings.budget_evaluations < swept:
        raise SearchError(
            f"budget_evaluations: {settings.budget_evaluations} is too few for the sweep, which takes {swept} over "
            f"{len(candidates)} pairs of method and dims; raise it, or lower sweep_points"
        )
    expected = swept + min(strengths, settings.refined_candidates) * settings.refine_steps + 2 * settings.vector_steps
    expected = min(expected, settings.budget_evaluations or expected)
    with contextlib.ExitStack() as stack:
        opened = None
        if trajectory is not None:
            # Not the budgets: they end a search, and decide nothing.
            identity = {
                "settings": settings.model_dump(mode="json", exclude={"budget_evaluations", "budget_s"}),
                "space": space.model_dump(mode="json"),
                "objective": dict(objective.describe()),
            }
            opened = Trajectory.open(trajectory, identity, resume=resume, overwrite=overwrite)
            stack.callback(opened.close)
        elif resume or overwrite:
            raise SearchError("trajectory: none given; resume and overwrite need the file")
        evaluator = Evaluator(objective, part, settings, opened, expected, on_evaluation, clock)
        budget_spent = None
        try:
            if part is None or not _search_by_part(evaluator, candidates, settings):
                _search_on_all(evaluator, candidates, settings)
            if not any(is_settled(evaluation, settings.tolerance) for evaluation in evaluator.evaluations):
                _search_vector(evaluator, space, settings)
        except BudgetSpentError as error:
            budget_spent = str(error)
        if not evaluator.evaluations:
            nearest = min(evaluator.screened, key=lambda evaluation: evaluation.distance, default=None)
            first = nearest.spec if nearest is not None else candidates[0].spec(_sweep_of(candidates[0], settings)[0])
            evaluator.measure([first], "refine", overdrawn=True)
    return conclude(evaluator.everything, space, settings, objective.retained_value, budget_spent)


def _search_by_part(evaluator: Evaluator, candidates: Sequence[Candidate], settings: SearchSettings) -> bool:
    """Look on a part of the examples, and measure everything where the part's curve says, until a point will
    do, or in a bracket to close in on. False where that leads nowhere."""
    promising = [c for c in candidates if c.takes_strength and screen(evaluator, c, settings)]
    evaluator.measure([candidate.spec() for candidate in candidates if not candidate.takes_strength], "sweep")
    promising.sort(key=lambda candidate: promise(candidate, evaluator.screened, settings.tolerance))
    for candidate in promising[: settings.refined_candidates]:
        curve = screened_points(evaluator, candidate, settings)
        strength: float | None = settings.rounded(likeliest_strength(curve))
        for step in range(settings.refine_steps):
            if strength is None:
                break
            (evaluation,) = evaluator.measure([candidate.spec(strength)], "refine")
            if is_done(evaluation, settings):
                break
            points = scalar_points(candidate, evaluator.evaluations, settings.tolerance)
            if (ends := crossing(points)) is not None:
                _close_in(evaluator, candidate, settings, Bracket.between(*ends), settings.refine_steps - step - 1)
                break
            strength = next_strength(curve, points, settings)
    return any(is_done(evaluation, settings) for evaluation in evaluator.evaluations)


def _search_on_all(evaluator: Evaluator, candidates: Sequence[Candidate], settings: SearchSettings) -> None:
    for candidate in candidates:
        evaluator.measure([candidate.spec(strength) for strength in _sweep_of(candidate, settings)], "sweep")
    swept = evaluator.evaluations
    refinable = [candidate for candidate in candidates if candidate.takes_strength]
    refinable.sort(key=lambda candidate: promise(candidate, swept, settings.tolerance))
    for candidate in refinable[: settings.refined_candidates]:
        _refine(evaluator, candidate, settings)


def _sweep_of(candidate: Candidate, settings: SearchSettings) -> tuple[float | None, ...]:
    return settings.sweep_strengths() if candidate.takes_strength else (None,)


def _refine(evaluator: Evaluator, candidate: Candidate, settings: SearchSettings) -> None:
    """Close in on the retained value, or on the bottom where the metric does not cross it, until a point will do."""
    for step in range(settings.refine_steps):
        points = scalar_points(candidate, evaluator.evaluations, settings.tolerance)
        if any(is_done(point.evaluation, settings) for point in points):
            return
        if (ends := crossing(points)) is not None:
            _close_in(evaluator, candidate, settings, Bracket.between(*ends), settings.refine_steps - step)
            return
        # A two-sided difference about the nearest point; where the distance is flat, this is the bottom.
        strengths = [point.strength for point in points]
        centre = min(points, key=lambda point: point.evaluation.distance)
        sides = [settings.rounded(strength) for strength in halfway_to_neighbours(strengths, centre.strength)]
        if any(side in strengths for side in sides):
            return
        measured = evaluator.measure([candidate.spec(side) for side in sides], "refine")
        changes = [side.distance - centre.evaluation.distance for side in measured]
        if len(changes) == 1 and changes[0] >= 0:  # at a bound, and the way back from it leads upwards
            return
        if max(map(abs, changes)) <= _WORTHWHILE * settings.tolerance:
            return


def _close_in(
    evaluator: Evaluator, candidate: Candidate, settings: SearchSettings, bracket: Bracket, steps: int
) -> None:
    for _ in range(steps):
        strength = settings.rounded(bracket.next_strength())
        if bracket.ratio < NARROWEST_RATIO or not bracket.low < strength < bracket.high:
            return
        (evaluation,) = evaluator.measure([candidate.spec(strength)], "refine")
        if is_done(evaluation, settings):
            return
        bracket = bracket.narrowed(strength, residual(evaluation, settings.tolerance))


def _search_vector(evaluator: Evaluator, space: SearchSpace, settings: SearchSettings) -> None:
    """From the best single strength, descend in the log-strengths of all dimensions; the best point is the centre.

    The sign of a two-sided difference says which way, and the side that was measured is taken if it is nearer than
    the centre: a step costs two evaluations, in one call, and none can lose what was gained.
    """
    owners = [candidate for candidate in space.candidates() if candidate.takes_strength and candidate.touched_dims > 1]
    scalars = [e for e in evaluator.evaluations if any(owner.owns(e.spec) for owner in owners)]
    if not scalars or settings.vector_steps == 0:
        return
    best = choose(scalars, space, settings)
    candidate = next(owner for owner in owners if owner.owns(best.spec))
    dims = candidate.touched_dims
    centre = np.broadcast_to(np.log(np.asarray(best.spec.strength, dtype=np.float64)), dims)  # (dims,)
    size = settings.vector_step_size
    for direction in unit_directions(dims, settings.vector_steps, settings.seed):
        offset = size * math.sqrt(dims) * direction  # (dims,), root mean square `size`
        sides = [_strengths(centre + offset, settings), _strengths(centre - offset, settings)]
        measured = evaluator.measure([candidate.spec(side) for side in sides], "vector")
        nearer = min(measured, key=lambda evaluation: evaluation.distance)
        if any(is_settled(evaluation, settings.tolerance) for evaluation in measured):
            return
        if nearer.distance < best.distance:
            best, centre = nearer, np.log(np.asarray(nearer.spec.strength, dtype=np.float64))
            size *= _GROWTH
        else:
            size *= _DECAY
        if size < _SMALLEST_STEP:
            return


def _strengths(logarithms: NDArray[np.float64], settings: SearchSettings) -> tuple[float, ...]:
    """(dims,) log-strengths -> strengths within the bounds."""
    limits = math.log(settings.min_strength), math.log(settings.max_strength)
    return tuple(settings.rounded(strength) for strength in np.exp(logarithms.clip(*limits)).tolist())

"""Measuring within a budget: each corruption once, on the record before the search goes on, and never twice.

A corruption may be measured on a part of the examples (phase "screen") and on all of them; these are two measurements.

What a trajectory has on record is given back as it was measured, so a resumed search takes the same decisions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

from corruption import CorruptionSpec
from optimizer.search.protocol import Measurement, Objective
from optimizer.search.space import SearchSettings, label_of
from optimizer.search.trajectory import Evaluation, Phase, SearchError, Trajectory

__all__ = ["BudgetSpentError", "Evaluator", "OnEvaluation"]

OnEvaluation = Callable[[Evaluation, int, int], None]
"""Called after each evaluation with it, how many are done, and about how many there will be."""


_Key = tuple[CorruptionSpec, bool]
"""What is measured, and whether on a part of the examples only."""


def _key(spec: CorruptionSpec, phase: Phase) -> _Key:
    return spec, phase == "screen"


class BudgetSpentError(Exception):
    """No further evaluation fits the budget; the message says which budget."""


class Evaluator:
    """Measures corruptions, all with the same noise seeds (common random numbers).

    Args:
        objective: measures.
        screen: measures on a part of the examples; None: there is no part.
        settings: noise seeds and budgets.
        trajectory: where evaluations are recorded, and read from where it has them; None: nowhere.
        expected: how many evaluations the search is about to ask for, for the progress.
        on_evaluation: told of each evaluation, those read from the trajectory included.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        objective: Objective,
        screen: Objective | None,
        settings: SearchSettings,
        trajectory: Trajectory | None,
        expected: int,
        on_evaluation: OnEvaluation | None,
        clock: Callable[[], float],
    ) -> None:
        self._objective = objective
        self._screen = screen
        self._settings = settings
        self._trajectory = trajectory
        self._recorded = {_key(e.spec, e.phase): e for e in trajectory.recorded} if trajectory else {}
        self._expected = expected
        self._on_evaluation = on_evaluation
        self._clock = clock
        self._counted_from = clock()
        self._elapsed_before_s = 0.0
        self._done: dict[_Key, Evaluation] = {}
        # A line's number in the file, which may hold what this run does not come to ask for, or asks for later.
        self._next_index = len(self._recorded)

    @property
    def everything(self) -> tuple[Evaluation, ...]:
        """All evaluations, in order."""
        return tuple(self._done.values())

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those on all examples, in order."""
        return tuple(e for e in self._done.values() if e.phase != "screen")

    @property
    def screened(self) -> tuple[Evaluation, ...]:
        """Those on a part of the examples, in order."""
        return tuple(e for e in self._done.values() if e.phase == "screen")

    def measure(self, specs: Sequence[CorruptionSpec], phase: Phase, *, overdrawn: bool = False) -> list[Evaluation]:
        """Measure in one call of the objective, and return in the order given. What was measured before costs nothing.

        Screening leaves one evaluation of the budget to what follows. `overdrawn` measures whatever the seconds spent.

        Raises:
            BudgetSpentError: not all that is new fits the budget; none of it was measured.
            SearchError: the objective gives what is not a measurement.
        """
        new = [spec for spec in dict.fromkeys(specs) if _key(spec, phase) not in self._done]
        if new:
            if not overdrawn:
                self._check_budget(len(new) + (phase == "screen"))
            self._keep(new, phase)
        return [self._done[_key(spec, phase)] for spec in specs]

    def _keep(self, new: Sequence[CorruptionSpec], phase: Phase) -> None:
        measured: dict[CorruptionSpec, Measurement] = {}
        if any(_key(spec, phase) not in self._recorded for spec in new):
            # All of them, even if some are on record: the rest must be measured in the company it would have had.
            measured = self._checked(new, self._measured(new, phase))
        for spec in new:
            evaluation = self._recorded.get(_key(spec, phase))
            if evaluation is None:
                evaluation = self._record(spec, measured[spec], phase)
            else:
                self._elapsed_before_s, self._counted_from = evaluation.elapsed_s, self._clock()
            self._done[_key(spec, phase)] = evaluation
            if self._on_evaluation is not None:
                self._on_evaluation(evaluation, len(self._done), max(self._expected, len(self._done)))

    def _measured(self, specs: Sequence[CorruptionSpec], phase: Phase) -> list[Measurement]:
        if phase != "screen":
            return self._objective.measure(specs, self._settings.noise_seeds)
        assert self._screen is not None
        return self._screen.measure(specs, self._settings.noise_seeds[:1])

    def _record(self, spec: CorruptionSpec, measurement: Measurement, phase: Phase) -> Evaluation:
        evaluation = Evaluation(
            index=self._next_index,
            phase=phase,
            spec=spec,
            noise_seeds=self._settings.noise_seeds[: 1 if phase == "screen" else None],
            elapsed_s=self._elapsed_s(),
            **asdict(measurement),
        )
        if self._trajectory is not None:
            self._trajectory.append(evaluation)
        self._next_index += 1
        return evaluation

    def _checked(
        self, specs: Sequence[CorruptionSpec], measured: Sequence[Measurement]
    ) -> dict[CorruptionSpec, Measurement]:
        if len(measured) != len(specs):
            raise SearchError(f"objective: measure() gave {len(measured)} measurements for {len(specs)} corruptions")
        for spec, measurement in zip(specs, measured, strict=True):
            for name, number in asdict(measurement).items():
                if not math.isfinite(number) or (number < 0 and name not in {"value", "gap"}):
                    raise SearchError(f"objective: {name} is {number} for {label_of(spec)}; the search cannot go by it")
        return dict(zip(specs, measured, strict=True))

    def _check_budget(self, wanted: int) -> None:
        most = self._settings.budget_evaluations
        if most is not None and len(self._done) + wanted > most:
            raise BudgetSpentError(f"the budget of {most} evaluations is spent")
        limit_s = self._settings.budget_s
        if limit_s is not None and self._elapsed_s() >= limit_s:
            raise BudgetSpentError(f"the budget of {limit_s:g} s is spent")

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + self._clock() - self._counted_from

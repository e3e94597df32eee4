"""What the report says before its tables: three sentences for somebody who reads no further."""

from collections.abc import Iterator, Sequence

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import counted
from evaluation.report.section import number


def summary_of(suites: Sequence[SuiteRuns]) -> list[str]:
    """What was compared; how far the best of it forgot; what that cost. Less where less was measured."""
    runs = [run for suite in suites for run in suite.runs]
    kinds = list(dict.fromkeys(run.kind_name for run in runs))
    of_kinds = ", ".join(f"{sum(run.kind_name == kind for run in runs)} {kind}" for kind in kinds)
    said = [f"{counted(len(runs), 'run')} of {counted(len(suites), 'suite')} stand side by side: {of_kinds}."]
    told = (sentences for suite in suites if (sentences := list(_found(suite))))
    return [*said, *next(told, [])]


def _found(suite: SuiteRuns) -> Iterator[str]:
    """Of the suite's first figure that should fall, and its first that should not."""
    names = suite.headline() or suite.names()
    falling = next((name for name in names if suite.directions.get(name) == "down"), None)
    staying = next((name for name in names if suite.directions.get(name) == "up" and name != falling), None)
    treated = [run for run in suite.runs if run.record.kind not in ("original", "retain")]
    if falling is None or not (measured := [run for run in treated if run.value(falling) is not None]):
        return
    aim = _value(suite, "retain", falling) or 0.0
    best = min(measured, key=lambda run: abs((run.value(falling) or 0.0) - aim))
    before = _value(suite, "original", falling)
    start = "" if before is None else f"from {number(before)} (original) "
    reached = number(best.value(falling) or 0.0)
    yield f"In {suite.title}, “{best.label}” brings {falling} {start}to {reached}{_never(suite, falling)}."
    if staying is not None and (kept := best.value(staying)) is not None:
        before = _value(suite, "original", staying)
        was = "" if before is None else f", where the original has {number(before)}"
        yield f"The same run has {staying} of {number(kept)}{was}{_never(suite, staying)}."


def _never(suite: SuiteRuns, name: str) -> str:
    aim = _value(suite, "retain", name)
    return "" if aim is None else f"; a model that never learned has {number(aim)}"


def _value(suite: SuiteRuns, kind: str, name: str) -> float | None:
    """Of the first run of this kind that has it."""
    return next((value for run in suite.of_kind(kind) if (value := run.value(name)) is not None), None)

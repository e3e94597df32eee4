"""What the report says before its tables: three sentences for somebody who reads no further."""

from collections.abc import Iterator, Sequence

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import counted
from evaluation.report.load import Run
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
    aim = _value(suite.of_kind("retain"), falling)
    best = min(measured, key=lambda run: abs((run.value(falling) or 0.0) - (aim or 0.0)))
    yield _sentence(suite, best, falling, f"In {suite.title}, “{best.label}” brings {falling}", aim)
    if staying is not None and best.value(staying) is not None:
        aim = _value(suite.of_kind("retain"), staying)
        yield _sentence(suite, best, staying, f"The same run has {staying}", aim, starts="of")


def _sentence(suite: SuiteRuns, run: Run, name: str, opening: str, aim: float | None, starts: str = "to") -> str:
    before = _value(suite.of_kind("original"), name)
    value = number(run.value(name) or 0.0)
    change = f"{starts} {value}" if before is None else f"from {number(before)} (original) to {value}"
    if before is not None and starts == "of":
        change = f"of {value}, where the original has {number(before)}"
    never = "" if aim is None else f"; a model that never learned has {number(aim)}"
    return f"{opening} {change}{never}."


def _value(runs: Sequence[Run], name: str) -> float | None:
    """Of the first run that has it."""
    return next((value for run in runs if (value := run.value(name)) is not None), None)

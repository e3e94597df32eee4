"""Pictures of figures over forget sets of growing size, or over requests to forget that follow each other.

MUSE's criteria C5 and C6 (Shi et al. 2024, arXiv 2407.06460). Which forget set a run's target has unlearned stands in
its settings, as `fold`: "scal:2", "sust:3".
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import INK, Plot, finished, label, legend, looks, report_look
from evaluation.report.load import Run

_FOLD: Final = re.compile(r"(scal|sust):([1-9]\d?)")
#: Title, and what stands across.
_CRITERIA: Final[Mapping[str, tuple[str, str]]] = {
    "scal": ("Scalability", "forget set, each larger than the one before"),
    "sust": ("Sustainability", "request to forget, one after the other"),
}
_MOST_PANELS: Final = 6


def fold_plots(suite: SuiteRuns) -> list[Plot]:
    """One for each criterion of which there are runs of two folds or more."""
    plots = []
    for criterion, (title, across) in _CRITERIA.items():
        folds = folds_of(suite, criterion)
        names = [name for name in suite.headline() or suite.names() if _measured(suite.runs, folds, name)]
        if len(set(folds.values())) < 2 or not names:
            continue
        names = names[:_MOST_PANELS]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        with report_look():
            figure = Figure(figsize=(max(4.6, 2.9 * columns), 2.5 * rows + 0.7), layout="constrained")
            panels = [figure.add_subplot(rows, columns, place) for place in range(1, len(names) + 1)]
            for axes, name in zip(panels, names, strict=True):
                _paint(axes, suite, folds, name)
            legend(figure, panels[0])
            shown = ", ".join(f"{run.label} ({folds[run.label]})" for run in suite.runs if run.label in folds)
            alt = f"{suite.title}: {', '.join(names)} over {across}: {shown}. The table holds the numbers."
            caption = f"Across: {across}. With 95 % intervals. A run that names none has unlearned the first."
            plots.append(finished(figure, f"{suite.suite}-{criterion}", title, alt, caption))
    return plots


def folds_of(suite: SuiteRuns, criterion: str) -> dict[str, int]:
    """By label, the fold of each run that unlearned one of a criterion.

    The first fold of both criteria is the forget set that a run without one is about, so that such a run is drawn with
    the others, unless it is of a model that has unlearned nothing; none where no run names a fold of the criterion.
    """
    named, first = dict[str, int](), dict[str, int]()
    for run in suite.runs:
        fold = run.record.suite_settings.get("fold")
        if fold is None and run.record.kind not in ("original", "retain"):
            first[run.label] = 1
        elif isinstance(fold, str) and (match := _FOLD.fullmatch(fold)) and match[1] == criterion:
            named[run.label] = int(match[2])
    return first | named if named else {}


def _measured(runs: Sequence[Run], folds: Mapping[str, int], name: str) -> bool:
    return any(run.label in folds and run.value(name) is not None for run in runs)


def _paint(axes: Axes, suite: SuiteRuns, folds: Mapping[str, int], name: str) -> None:
    axes.grid(visible=True)
    for kind, line in (("retain", "--"), ("original", ":")):
        for run in suite.of_kind(kind):
            if run.label not in folds and (value := run.value(name)) is not None:
                axes.axhline(value, color=INK, linestyle=line, linewidth=1, label=label(run.label))
    for look, runs in looks(tuple(run for run in suite.runs if run.label in folds)):
        points = []  # fold, value, and lower and upper end (the value where there is no interval)
        for run in sorted(runs, key=lambda run: folds[run.label]):
            if (value := run.value(name)) is not None:
                low, high = run.figures[name].low, run.figures[name].high
                points.append((folds[run.label], value, value if low is None else low, value if high is None else high))
        if points:
            numbers, values, lows, highs = zip(*points, strict=True)
            axes.fill_between(numbers, lows, highs, color=look.colour, alpha=0.18, linewidth=0)
            axes.plot(numbers, values, color=look.colour, marker=look.marker, markersize=4, label=look.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(name)

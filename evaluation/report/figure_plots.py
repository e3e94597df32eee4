"""Pictures of figures: forget quality against model utility, and scores against strength."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import INK, Look, Plot, finished, label, legend, looks, report_look
from evaluation.report.load import FigureRecord, Run

_UTILITY, _RETAIN_UTILITY = "model_utility", "retain_utility"
_QUALITY, _FALLBACK = "forget_quality", "forget/probability"
_SIGNIFICANT: Final = 0.05
_MOST_PANELS: Final = 6
#: A largest strength this many times the smallest is drawn on a log scale.
_WIDE: Final = 20.0


@dataclass(frozen=True, slots=True)
class _Plane:
    """Names of the figures across and upwards, and the value that a p-value of 0 is drawn at."""

    x: str
    y: str
    least: float

    def place(self, run: Run) -> tuple[float, float] | None:
        """None where the run lacks one of the figures."""
        x, y = run.value(self.x), run.value(self.y)
        if x is None or y is None:
            return None
        return x, max(y, self.least) if self.y == _QUALITY else y

    def marks_utility(self, run: Run) -> bool:
        """A retain model without a value upwards, such as a p-value against itself, is a line at its utility."""
        return run.record.kind == "retain" and run.value(self.x) is not None


def plane_plot(suite: SuiteRuns) -> Plot | None:
    """Every method and its strengths on one plane, the retain model marked; None where fewer than two runs have a
    place on it.

    As in TOFU (Maini et al. 2024, arXiv 2401.06121, section 4): utility across, the p-value upwards on a log scale.
    """
    plane = _choose_plane(suite)
    if plane is None:
        return None
    x, y = (
        name + {"up": ", more is better", "down": ", less is better"}.get(suite.directions.get(name, ""), "")
        for name in (plane.x, plane.y)
    )
    caption = f"Across: {x}; upwards: {y}."
    if plane.y != _QUALITY and any(_QUALITY in run.figures for run in suite.runs):
        caption += f" Too few runs have {_QUALITY}, which needs a retain model to compare with."
    caption += " Bars are 95 % intervals; numbers are strengths, joined in order."
    placed = [run.label for run in suite.runs if plane.place(run)]
    missing = [run.label for run in suite.runs if not plane.place(run) and not plane.marks_utility(run)]
    if missing:
        caption += f" Not drawn, for want of a figure: {', '.join(missing)}."
    title = f"{plane.y} against {plane.x}"
    alt = f"{suite.title}: {title} for {len(placed)} runs: {', '.join(placed)}. The table holds the numbers."
    series = looks(suite.runs)
    with report_look():
        figure = Figure(figsize=(7.6, 4.6 + 0.2 * ((len(series) + 2) // 3)), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True)
        for look, runs in series:
            _paint_series(axes, plane, look, runs)
        axes.set(xlabel=plane.x, ylabel=plane.y)
        if plane.y == _QUALITY:
            axes.set_ylabel(f"{plane.y} (p-value, log scale)")
            _scale_p_values(axes)
            axes.axhline(_SIGNIFICANT, color=INK, linestyle=":", linewidth=1, label=f"p = {_SIGNIFICANT:g}")
        axes.margins(0.08)
        legend(figure, axes)
        return finished(figure, f"{suite.suite}-plane", title, alt, caption)


def _choose_plane(suite: SuiteRuns) -> _Plane | None:
    """TOFU's two figures where there are, and a utility above 0; else the first headline figures that are better up and
    better down."""
    up, down = ([name for name in suite.headline() if suite.directions.get(name) == way] for way in ("up", "down"))
    for y in [_QUALITY, _FALLBACK, *down]:
        values = [value for run in suite.runs if (value := run.value(y)) is not None]
        least = min((value for value in values if value > 0), default=1.0) / 10
        for x in [_UTILITY, _RETAIN_UTILITY, *(name for name in up if "forget" not in name)]:
            plane = _Plane(x, y, least)
            places = [place for run in suite.runs if (place := plane.place(run)) is not None]
            # A model that knows nothing but its training set has no model utility, whatever it forgets.
            if len(places) > 1 and any(across > 0 for across, _ in places):
                return plane
    return None


def _paint_series(axes: Axes, plane: _Plane, look: Look, runs: Sequence[Run]) -> None:
    places = [(run, *place) for run in runs if (place := plane.place(run)) is not None]
    if not places:
        for run in runs:
            if plane.marks_utility(run):
                utility = run.value(plane.x) or 0.0
                axes.axvline(utility, color=look.colour, linestyle="--", linewidth=1, label=f"{look.name}, {plane.x}")
        return
    joined = [(x, y) for run, x, y in places if run.record.strength is not None]
    if len(joined) > 1:
        axes.plot(*zip(*joined, strict=True), color=look.colour, linewidth=look.width, alpha=0.7, zorder=2)
    for position, (run, x, y) in enumerate(places):
        axes.errorbar(
            [x],
            [y],
            xerr=_error_bar(run.figures[plane.x], x),
            yerr=_error_bar(run.figures[plane.y], y),
            color=look.colour,
            ecolor=(look.colour, 0.45),
            elinewidth=1,
            marker=look.marker,
            markersize=look.size,
            linestyle="none",
            zorder=3,
            label=label(look.name) if position == 0 else None,
        )
        if run.record.strength is not None:
            text = f"{run.record.strength:g}"
            axes.annotate(text, (x, y), (6, 5), textcoords="offset points", fontsize="small", color=look.colour)


def _error_bar(figure: FigureRecord, at: float) -> list[list[float]] | None:
    if figure.low is None or figure.high is None:
        return None
    return [[max(0.0, at - figure.low)], [max(0.0, figure.high - at)]]


def strength_plot(suite: SuiteRuns) -> Plot | None:
    """What a stronger corruption does: a panel for each headline figure, beside the retain model's value and the
    original's. None without guarded runs of two strengths."""
    guarded = [run for run in suite.of_kind("guarded") if run.record.strength is not None]
    names = [name for name in suite.headline() or suite.names() if any(run.value(name) is not None for run in guarded)]
    names = names[:_MOST_PANELS]
    if len({run.record.strength for run in guarded}) < 2 or not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with report_look():
        figure = Figure(figsize=(max(4.6, 2.9 * columns), 2.5 * rows + 0.5), layout="constrained")
        panels = [figure.add_subplot(rows, columns, place) for place in range(1, len(names) + 1)]
        for axes, name in zip(panels, names, strict=True):
            _paint_strengths(axes, suite, guarded, name)
        legend(figure, panels[0])
        strengths = ", ".join(f"{run.record.strength:g}" for run in guarded)
        alt = f"{suite.title}: {', '.join(names)} against the strengths {strengths}. The table holds the numbers."
        caption = "Guarded runs by strength, with 95 % intervals; across: strength, in units of the embedding rows."
        return finished(figure, f"{suite.suite}-strength", "Score against strength", alt, caption)


def _paint_strengths(axes: Axes, suite: SuiteRuns, guarded: Sequence[Run], name: str) -> None:
    axes.grid(visible=True)
    for kind, line in (("retain", "--"), ("original", ":")):
        for run in suite.of_kind(kind):
            if (value := run.value(name)) is not None:
                axes.axhline(value, color=INK, linestyle=line, linewidth=1, label=label(run.label))
    places: set[float] = set()
    least = math.inf
    for look, runs in looks(tuple(guarded)):
        points = []  # strength, value, and lower and upper end (the value where there is no interval)
        for run in runs:
            if (value := run.value(name)) is not None:
                low, high = run.figures[name].low, run.figures[name].high
                ends = (value if low is None else low, value if high is None else high)
                points.append((run.record.strength or 0.0, value, *ends))
        if points:
            strengths, values, lows, highs = zip(*points, strict=True)
            axes.fill_between(strengths, lows, highs, color=look.colour, alpha=0.18, linewidth=0)
            axes.plot(strengths, values, color=look.colour, marker=look.marker, markersize=4, label=look.name)
            places, least = places.union(strengths), min(least, *lows)
    if min(places) > 0 and max(places) / min(places) >= _WIDE:
        axes.set_xscale("log")
        axes.set_xticks(sorted(places), [f"{strength:g}" for strength in sorted(places)])
        axes.minorticks_off()
    if name == _QUALITY and least > 0:
        _scale_p_values(axes)
    axes.set_title(name)


def _scale_p_values(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

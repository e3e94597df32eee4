"""Requests to forget that come one after another: a picture over the steps."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import Plot, counted, finished, label, legend, report_look
from evaluation.report.load import Run

_STEP: Final = re.compile(r"(?P<series>.+)/after_(?P<step>\d+)")
_REQUEST: Final = re.compile(r"request_\d+/rouge_l")
_COLOURS: Final = ("#2f7fd0", "#d1495b", "#2a9367", "#9a6dd7", "#d9730d", "#1a93a3")


class _Line(NamedTuple):
    """A series of a panel, how it is drawn, and what it is called."""

    series: str
    style: str
    name: str


class _Panel(NamedTuple):
    title: str
    lines: tuple[_Line, ...]


_PANELS: Final = (
    _Panel(
        "ROUGE-L of what was to be forgotten",
        (_Line("forget/rouge_l", "-", "all so far"), _Line("request_1/rouge_l", "--", "the first request")),
    ),
    _Panel(
        "ROUGE-L of what was to stay",
        (_Line("retain/rouge_l", "-", "retain set"), _Line("waiting/rouge_l", ":", "not asked for yet")),
    ),
    _Panel(
        "what a prompt takes the policies, ms",
        (_Line("latency/guard_ms", "-", "guard"), _Line("latency/classify_ms", "-", "/v1/classify")),
    ),
)


def steps_plot(suite: SuiteRuns) -> Plot | None:
    """What was forgotten, what stayed and what the guard took, after each addition; None without such figures.

    Bands are 95 % intervals. With one run, thin lines are the single requests, each from its own step on.
    """
    panels = [
        panel for panel in _PANELS if any(_points(run, line.series) for run in suite.runs for line in panel.lines)
    ]
    if len(panels) < 2:
        return None
    with report_look():
        figure = Figure(figsize=(3.6 * len(panels), 3.6 + 0.2 * len(suite.runs)), layout="constrained")
        for place, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), place)
            _paint(axes, panel, suite.runs)
            if place == 1:
                legend(figure, axes, columns=2)
        steps = max((step for run in suite.runs for step, *_ in _points(run, "retain/rouge_l")), default=0)
        alt = f"{suite.title}: {counted(len(suite.runs), 'run')} over {counted(steps, 'addition')}. {_ends(suite.runs)}"
        caption = (
            "Step 0 is the model without a policy; each step adds one. Solid: all that was asked for so far, and the "
            "retain set; dashed: the first request; dotted: what later requests will ask for. Bands: 95 % intervals."
        )
        if len(suite.runs) == 1:
            caption += " Thin: single requests, each from its own step on."
        return finished(figure, f"{suite.suite}-steps", "After each addition", alt, caption)


def _points(run: Run, series: str) -> list[tuple[int, float, float, float]]:
    """Step, value, and lower and upper end (the value where it has no interval)."""
    found = []
    for name, figure in run.figures.items():
        match = _STEP.fullmatch(name)
        if match and match["series"] == series and figure.value is not None:
            low = figure.value if figure.low is None else figure.low
            high = figure.value if figure.high is None else figure.high
            found.append((int(match["step"]), figure.value, low, high))
    return sorted(found)


def _paint(axes: Axes, panel: _Panel, runs: Sequence[Run]) -> None:
    axes.grid(visible=True)
    for number, run in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        if len(runs) == 1 and panel is _PANELS[0]:
            _paint_requests(axes, run, colour)
        for line in panel.lines:
            points = _points(run, line.series)
            if not points:
                continue
            steps, values, lows, highs = zip(*points, strict=True)
            name = line.name if len(runs) == 1 else f"{run.label}, {line.name}"
            axes.plot(steps, values, line.style, color=colour, marker=".", label=label(name))
            if line.style == "-":
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
    if "ROUGE-L" in panel.title:
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=panel.title, xlabel="policies added")


def _paint_requests(axes: Axes, run: Run, colour: str) -> None:
    series = {match["series"] for name in run.figures if (match := _STEP.fullmatch(name))}
    for one in sorted(filter(_REQUEST.fullmatch, series)):
        steps, values, *_ = zip(*_points(run, one), strict=True)
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.5)


def _ends(runs: Sequence[Run]) -> str:
    """The last values in words."""
    said = []
    for run in runs:
        forget, retain = (_points(run, series) for series in ("forget/rouge_l", "retain/rouge_l"))
        if forget and retain:
            ends = f"{forget[-1][1]:.3f} of what was to be forgotten, {retain[-1][1]:.3f} of the rest"
            said.append(f"{run.label}: at the end {ends}")
    return "; ".join(said) + "."

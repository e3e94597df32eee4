"""A picture of a corruption search: the metric against strength, and the retained value it should come to."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import SearchError
from optimizer.search.evaluator import Evaluation
from optimizer.search.result import SearchResult, scalar_points
from optimizer.search.space import Candidate
from storage.whole import write_whole

_FORMATS = {".png": {"Software": None}, ".svg": {"Date": None}}
_WIDTH_INCHES = 10.0
_LEAST_HEIGHT_INCHES = 5.0
_LEGEND_INCHES = 0.2  # per entry
_DPI = 120
_LINES = ("-", "--", "-.", ":")


def plot_search(result: SearchResult, path: str | Path) -> None:
    """Draw the search as PNG or SVG, by the name's ending. The same result gives the same bytes.

    One colour per method and number of dimensions, with a standard error on each point: a line for single strengths,
    open points for strength vectors (at their geometric mean), crosses for what a part of the examples said, a dashed
    line across for a method without strength. A star is the point taken, where it has a strength.

    Raises:
        SearchError: another ending, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise SearchError(f"{path}: a plot is a .png or a .svg file; choose a name that ends so")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    retained, tolerance = result.retained_value, result.settings.tolerance
    axes.axhspan(retained - tolerance, retained + tolerance, color="0.85", label=f"tolerance ± {tolerance:g}")
    axes.axhline(retained, color="black", linewidth=1, label=f"retained value {retained:.4g}")
    for index, candidate in enumerate(result.space.candidates()):
        own = [evaluation for evaluation in result.evaluations if candidate.owns(evaluation.spec)]
        if own:
            _draw_candidate(axes, candidate, own, tolerance, f"C{index % 10}", _LINES[index // 10 % len(_LINES)])
    at = _geometric_mean(result.best)
    if at is not None:
        label = "taken" if result.reached else "nearest, not within the tolerance"
        axes.plot([at], [result.best.value], "*", color="black", markersize=14, zorder=5, label=label)
    if any(_geometric_mean(evaluation) is not None for evaluation in result.evaluations):
        axes.set_xscale("log")
        axes.set_xlabel("strength, in units of the embedding rows")
    else:
        axes.set_xticks([])
    axes.set_ylabel("metric on the forget set")
    legend = figure.legend(loc="outside right upper", fontsize="small")
    figure.set_size_inches(_WIDTH_INCHES, max(_LEAST_HEIGHT_INCHES, _LEGEND_INCHES * (len(legend.get_texts()) + 1)))
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "eco"}):  # element ids follow from this salt, else from chance
        figure.savefig(picture, format=path.suffix[1:], metadata=_FORMATS[path.suffix])
    try:
        write_whole(path, picture.getvalue())
    except OSError as error:
        raise SearchError(f"{path}: cannot be written ({error.strerror})") from error


def _draw_candidate(
    axes: Any, candidate: Candidate, own: Sequence[Evaluation], tolerance: float, colour: str, line: str
) -> None:
    if not candidate.takes_strength:
        value, error = own[0].value, own[0].standard_error
        axes.axhline(value, color=colour, linestyle="--", label=str(candidate))
        axes.axhspan(value - error, value + error, color=colour, alpha=0.15)
        return
    points = scalar_points(candidate, [e for e in own if e.phase != "screen"], tolerance)
    axes.errorbar(
        [point.strength for point in points],
        [point.evaluation.value for point in points],
        yerr=[point.evaluation.standard_error for point in points],
        color=colour,
        linestyle=line,
        marker="o",
        markersize=4,
        capsize=3,
        label=str(candidate),
    )
    part = scalar_points(candidate, [e for e in own if e.phase == "screen"], tolerance)
    if part:
        strengths, values = zip(*((point.strength, point.evaluation.value) for point in part), strict=True)
        label = f"{candidate}, on a part of the examples"
        axes.plot(strengths, values, color=colour, linestyle=":", marker="x", markersize=5, linewidth=0.8, label=label)
    vectors = [evaluation for evaluation in own if evaluation.phase == "vector"]
    if vectors:
        axes.errorbar(
            [_geometric_mean(evaluation) for evaluation in vectors],
            [evaluation.value for evaluation in vectors],
            yerr=[evaluation.standard_error for evaluation in vectors],
            color=colour,
            linestyle="none",
            marker="o",
            markerfacecolor="none",
            label=f"{candidate}, one strength each",
        )


def _geometric_mean(evaluation: Evaluation) -> float | None:
    strength = evaluation.spec.strength
    if isinstance(strength, tuple):
        return math.exp(math.fsum(map(math.log, strength)) / len(strength))
    return strength

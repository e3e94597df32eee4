"""An assessment as pictures: the same assessment gives the same bytes, on any machine with the same matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from classifiers.calibration.assessment import Assessment, Proportion
from classifiers.calibration.threshold import CalibrationError
from storage.whole import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORGET, _KEEP, _GUIDE = "tab:red", "tab:blue", "0.6"
_CLOSE_UP = 0.05


def write_plots(assessment: Assessment, folder: str | Path) -> list[Path]:
    """Write roc.svg, precision_recall.svg, scores.svg and reliability.svg; the folder is made if it is missing.

    All four are drawn before the first is written, and each file is written whole or not at all.

    Raises:
        CalibrationError: a file or the folder cannot be written.
    """
    from matplotlib.style import context

    pictures: dict[Path, bytes] = {}
    with context(["default", {"svg.hashsalt": "eco"}]):  # whatever the user's own settings are
        for name, figure in _figures(assessment):
            figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
            pictures[Path(folder) / name] = buffer.getvalue()
    for path, picture in pictures.items():
        try:
            write_whole(path, picture)
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be written ({error.strerror})") from error
    return list(pictures)


def _figures(assessment: Assessment) -> Iterator[tuple[str, Figure]]:
    recall, false_positives = assessment.rates.recall, assessment.rates.false_positives
    assert recall is not None
    assert false_positives is not None

    # The whole curve, and its left edge, where a guard works.
    figure, panels = _panels(f"ROC, area {assessment.roc.auc:.4f}", 2)
    for axes, width in zip(panels, (1.0, _CLOSE_UP), strict=True):
        axes.plot([0, 1], [0, 1], color=_GUIDE, linestyle=":")
        axes.plot(assessment.roc.false_positive_rate, assessment.roc.recall, color=_FORGET)
        axes.errorbar(
            [false_positives.rate],
            [recall.rate],
            xerr=_bars(false_positives),
            yerr=_bars(recall),
            color="black",
            marker="o",
            linestyle="none",
            capsize=3,
            label=f"threshold {assessment.threshold:.4g}, 95 % intervals",
        )
        axes.set(xlim=(-0.02 * width, width), ylim=(-0.02, 1.02), xlabel="false-positive rate", ylabel="recall")
        axes.legend(loc="lower right")
    panels[1].set_title(f"false positives up to {_CLOSE_UP:.0%}", fontsize="medium")
    yield "roc.svg", figure

    curve = assessment.precision_recall
    figure, (axes,) = _panels(f"Precision and recall, average precision {curve.average_precision:.4f}")
    axes.step([0, *curve.recall], [curve.precision[0], *curve.precision], where="pre", color=_FORGET)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision")
    yield "precision_recall.svg", figure

    # Counts on a log scale: a few texts on the wrong side are what matters.
    figure, (axes,) = _panels("Scores by class")
    histogram = assessment.histogram
    for counts, colour, label in ((histogram.negatives, _KEEP, "keep"), (histogram.positives, _FORGET, "forget")):
        label = f"to {label} ({sum(counts)})"
        axes.stairs(counts, histogram.edges, fill=True, color=colour, alpha=0.45, label=label)
    axes.axvline(assessment.threshold, color="black", linestyle="--", label=f"threshold {assessment.threshold:.4g}")
    axes.set_yscale("log", nonpositive="clip")
    axes.set(xlim=(0, 1), ylim=(0.5, None), xlabel="score", ylabel="texts")
    axes.legend()
    yield "scores.svg", figure

    error, bins = assessment.reliability.expected_calibration_error, assessment.reliability.bins
    figure, (axes,) = _panels(f"Reliability, expected calibration error {error:.4f}")
    axes.plot([0, 1], [0, 1], color=_GUIDE, linestyle=":")
    axes.plot([row.mean_score for row in bins], [row.observed for row in bins], color=_FORGET, marker="o")
    for row in bins:
        axes.annotate(str(row.count), (row.mean_score, row.observed), (0, 6), textcoords="offset points", ha="center")
    axes.set(xlim=(-0.02, 1.02), xlabel="mean score of a bin")
    axes.set(ylim=(-0.02, 1.08), ylabel="share to forget (texts above)")
    yield "reliability.svg", figure


def _panels(title: str, count: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    figure.suptitle(title)
    return figure, [figure.add_subplot(1, count, number + 1) for number in range(count)]


def _bars(share: Proportion) -> list[list[float]]:
    return [[share.rate - share.low], [share.high - share.rate]]

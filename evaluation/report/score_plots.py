"""Pictures of the scores of single examples: how the gate tells prompts apart, and the means of groups of examples."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import INK, Plot, counted, finished, label, legend, report_look, short
from evaluation.report.load import Run

#: Subsets of prompts to forget, with the subsets of others that each is told from.
_PAIRS: Final = (("forget", "retain"), ("forget", "general"), ("indirect", "neighbour"))
_CLOSE_UP: Final = 0.05
_COLOURS: Final = ("#d1495b", "#2f7fd0", "#2a9367", "#9a6dd7", "#d9730d", "#1a93a3")
_LINES: Final = ("-", "--", "-.", ":")
_MOST_GROUPS: Final = 20
_MOST_GROUP_PLOTS: Final = 6
_COLOUR_MAP: Final = "cividis"

#: Subset -> example -> value.
_Values = dict[str, dict[str, float]]
#: Group, or subset -> label of a run -> values.
_Rows = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Curve:
    """ROC of a gate.

    Attributes:
        name: what it is of.
        false_positives, recall: (K,) rates at K thresholds, from 0 to 1.
        auc: the area; ties count half.
        operating: false positives and recall at the policy's own threshold; None where verdicts are not recorded.
    """

    name: str
    false_positives: NDArray[np.float64]
    recall: NDArray[np.float64]
    auc: float
    operating: tuple[float, float] | None


def gate_plot(suite: SuiteRuns) -> Plot | None:
    """What share of the prompts to forget the gate flags against what share of the others, at any threshold; None
    where no run has gate scores of both."""
    curves = gate_curves(suite)
    if not curves:
        return None
    with report_look():
        figure = Figure(figsize=(7.6, 3.9 + 0.2 * ((len(curves) + 1) // 2)), layout="constrained")
        panels = [figure.add_subplot(1, 2, number) for number in (1, 2)]
        for axes, width in zip(panels, (1.0, _CLOSE_UP), strict=True):
            axes.grid(visible=True)
            axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=0.8)
            for number, curve in enumerate(curves):
                colour, line = _COLOURS[number % len(_COLOURS)], _LINES[number % len(_LINES)]
                text = label(f"{curve.name}, area {curve.auc:.4f}")
                axes.plot(curve.false_positives, curve.recall, color=colour, linestyle=line, label=text)
                if curve.operating is not None:
                    point = ([value] for value in curve.operating)
                    axes.plot(*point, color=colour, marker="o", linestyle="none", clip_on=False)
            limits = {"xlim": (-0.02 * width, width * 1.02), "ylim": (-0.02, 1.02)}
            axes.set(**limits, xlabel="false-positive rate", ylabel="recall")
        panels[1].set_title(f"false positives up to {_CLOSE_UP:.0%}")
        legend(figure, panels[0], columns=2)
        areas = "; ".join(f"{curve.name}: area {curve.auc:.4f}" for curve in curves)
        alt = f"{suite.title}: ROC of the gate. {areas}."
        caption = "All kinds of prompt together; the dot is the policy's own threshold. Right: the left edge, enlarged."
        return finished(figure, f"{suite.suite}-gate-roc", "ROC of the gate", alt, caption)


def gate_curves(suite: SuiteRuns) -> list[Curve]:
    """One for each kind of other prompts where all runs have the same gate, else one for each gate, over all kinds."""
    gates: dict[tuple[object, ...], tuple[str, _Values, _Values]] = {}
    for run in suite.runs:
        scores, flags = _by_subset(run, "gate_score"), _by_subset(run, "flagged")
        if any(forget in scores and other in scores for forget, other in _PAIRS):
            key = tuple((subset, *sorted(values.items())) for subset, values in sorted(scores.items()))
            gates.setdefault(key, (run.label, scores, flags))
    curves = []
    for name, scores, flags in gates.values():
        pairs = [pair for pair in _PAIRS if pair[0] in scores and pair[1] in scores]
        if len(gates) == 1:
            curves += [_curve(f"{one} against {other}", scores, flags, [one], [other]) for one, other in pairs]
        else:
            curves.append(_curve(name, scores, flags, *map(set, zip(*pairs, strict=True))))
    return curves


def _by_subset(run: Run, metric: str) -> _Values:
    """Of the first draw: a gate draws no noise."""
    values: _Values = {}
    for score in run.scores:
        if score.metric == metric:
            values.setdefault(score.subset, {}).setdefault(score.example, score.value)
    return values


def _curve(name: str, scores: _Values, flags: _Values, forget: Collection[str], others: Collection[str]) -> Curve:
    from sklearn.metrics import auc, roc_curve  # type: ignore[import-untyped]

    values, verdicts, labels = [], [], []
    for subsets, is_forget in ((forget, True), (others, False)):
        for subset in sorted(subsets):
            for example, value in scores[subset].items():
                values.append(value)
                verdicts.append(flags.get(subset, {}).get(example))
                labels.append(is_forget)
    false_positives, recall, _ = roc_curve(labels, values, drop_intermediate=False)
    operating = None
    if None not in verdicts:
        wrongly, rightly = (np.mean([v for v, own in zip(verdicts, labels, strict=True) if own == of]) for of in (0, 1))
        operating = (float(wrongly), float(rightly))
    return Curve(name, false_positives, recall, float(auc(false_positives, recall)), operating)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Means of a metric for each author, subject or kind of attack, in each run.

    Attributes:
        name: "forget/probability", or a metric that several subsets have.
        groups: the G rows: groups of the subset, or subsets.
        runs: the R columns.
        means: (G, R) over examples and draws; NaN where a run has none.
        total: groups there are; more than G where only those are kept whose means differ most between the runs.
    """

    name: str
    groups: tuple[str, ...]
    runs: tuple[Run, ...]
    means: NDArray[np.float64]
    total: int


def group_plots(suite: SuiteRuns) -> list[Plot]:
    """At most six."""
    plots = []
    for number, shown in enumerate(breakdowns(suite)[:_MOST_GROUP_PLOTS], start=1):
        title = f"{shown.name} by {'group' if '/' in shown.name else 'part'}"
        alt = f"{suite.title}: {title}: {counted(len(shown.groups), 'row')}, {counted(len(shown.runs), 'run')}. "
        extremes = []
        for word, extreme in (("Lowest", np.nanargmin), ("highest", np.nanargmax)):
            row, column = np.unravel_index(extreme(shown.means), shown.means.shape)
            extremes.append(f"{word} {shown.means[row, column]:.3f} ({shown.groups[row]}, {shown.runs[column].label})")
        caption = "Means over the examples of each row."
        if shown.total > len(shown.groups):
            rule = "differ most between the runs" if len(shown.runs) > 1 else "are highest"
            caption += f" The {len(shown.groups)} of {shown.total} that {rule}."
        with report_look():
            figure = _bars(shown) if len(shown.runs) == 1 else _heat_map(shown)
            alt += f"{', '.join(extremes)}."
            plots.append(finished(figure, f"{suite.suite}-groups-{number}", title, alt, caption))
    return plots


def breakdowns(suite: SuiteRuns) -> list[Breakdown]:
    """Headline metrics of subsets with groups, or the first metric of such a subset; where no subset has groups, the
    headline metrics that several subsets have."""
    grouped: dict[tuple[str, str], _Rows] = {}  # by subset and metric
    first_metric: dict[str, str] = {}
    parts: dict[str, _Rows] = {}  # by metric
    for run in suite.runs:
        for score in run.scores:
            if score.group:
                first_metric.setdefault(score.subset, score.metric)
                rows = grouped.setdefault((score.subset, score.metric), {})
                rows.setdefault(score.group, {}).setdefault(run.label, []).append(score.value)
        for name in suite.headline():
            subset, _, metric = name.rpartition("/")
            if subset and (value := run.value(name)) is not None:
                parts.setdefault(metric, {}).setdefault(subset, {})[run.label] = [value]
    named = {f"{subset}/{metric}": (subset, metric) for subset, metric in grouped}
    chosen = [named[name] for name in suite.headline() if name in named]
    chosen += [key for key in first_metric.items() if key[0] not in dict(chosen)]
    tables = [("/".join(key).removeprefix("/"), grouped[key]) for key in chosen if len(grouped[key]) > 1]
    tables = tables or [(metric, rows) for metric, rows in parts.items() if len(rows) > 1]
    found = []
    for name, rows in tables:
        runs = tuple(run for run in suite.runs if any(run.label in values for values in rows.values()))
        groups, means = list(rows), np.full((len(rows), len(runs)), np.nan)
        for row, column in np.ndindex(means.shape):
            if values := rows[groups[row]].get(runs[column].label):
                means[row, column] = np.mean(values)
        if len(rows) > _MOST_GROUPS:
            weight = np.nanmax(means, axis=1) - (np.nanmin(means, axis=1) if len(runs) > 1 else 0.0)
            kept = sorted(np.argsort(-weight, kind="stable")[:_MOST_GROUPS].tolist())
            groups, means = [groups[row] for row in kept], means[kept]
        found.append(Breakdown(name, tuple(groups), runs, means, len(rows)))
    return found


def _heat_map(shown: Breakdown) -> Figure:
    rows, columns = shown.means.shape
    figure = Figure(figsize=(max(5.0, 2.2 + 0.62 * columns), 1.6 + 0.3 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(shown.means, cmap=_COLOUR_MAP, edgecolors="none")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(columns) + 0.5, [short(run.label) for run in shown.runs], rotation=40, ha="right")
    axes.set_yticks(np.arange(rows) + 0.5, [short(group) for group in shown.groups])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    low, high = np.nanmin(shown.means), np.nanmax(shown.means)
    for (row, column), value in np.ndenumerate(shown.means):
        if np.isfinite(value):  # in black on the light half of the colour map, in white on the dark one
            light = high > low and (value - low) / (high - low) > 0.5
            text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
            colour = "#000000" if light else "#fafafa"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize="x-small", color=colour)
    return figure


def _bars(shown: Breakdown) -> Figure:
    figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(shown.groups)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="x")
    means = shown.means[:, 0]
    bars = axes.barh(range(len(means)), means, color="#2f7fd0", height=0.7)
    axes.bar_label(bars, [f"{value:.3g}" for value in means], padding=3, fontsize="small")
    if means.min() >= 0 and means.max() <= 1:  # a share, of which a small one shall look small
        axes.set_xlim(0, 1.08)
    axes.set_yticks(range(len(shown.groups)), [short(group) for group in shown.groups])
    axes.invert_yaxis()
    axes.set_xlabel(f"{shown.name}, {short(shown.runs[0].label)}")
    axes.axvline(0, color=INK, linewidth=0.8)
    return figure

"""What the pictures show, read from the figures behind them, and what they are as files."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from evaluated_runs import AUTHORS, gate_scores, tofu_scores, write_gate_run, write_run, write_tofu_runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from sklearn.metrics import roc_auc_score

from evaluation.report.compare import SuiteRuns, compared
from evaluation.report.drawing import Plot, inline_svg, looks
from evaluation.report.figure_plots import plane_plot, strength_plot
from evaluation.report.load import load_runs
from evaluation.report.score_plots import breakdowns, gate_curves, gate_plot, group_plots
from evaluation.report.section import suite_plots
from evaluation.suite import Figure, Score

SVG = "{http://www.w3.org/2000/svg}"


def suite_of(folders: list[Path]) -> SuiteRuns:
    (suite,) = compared(load_runs(folders))
    return suite


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> SuiteRuns:
    return suite_of(write_tofu_runs(tmp_path_factory.mktemp("tofu")))


Draw = Callable[[SuiteRuns], Plot | None]


def drawn(draw: Draw, suite: SuiteRuns) -> tuple[Plot, list[Axes]]:
    """The picture, and the axes that it was saved from."""
    figures: list[Canvas] = []
    save = Canvas.savefig

    def keep(figure: Canvas, *arguments: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "savefig", keep)
        plot = draw(suite)
    assert plot is not None
    return plot, figures[0].axes


def points(axes: Axes) -> list[tuple[float, float]]:
    """Where single markers stand, in the order in which they are drawn."""
    markers = [line.get_xydata()[0] for line in axes.lines if len(line.get_xydata()) == 1]
    return [(float(x), float(y)) for x, y in markers]


@pytest.fixture(scope="module")
def plots(tofu: SuiteRuns) -> list[Plot]:
    return suite_plots(tofu)


def texts(plot: Plot) -> list[str]:
    root = ElementTree.fromstring(plot.svg)  # noqa: S314
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


# --- the plane -------------------------------------------------------------------------------------------------


def test_every_run_has_its_place_on_the_plane(tofu: SuiteRuns) -> None:
    plot, (axes,) = drawn(plane_plot, tofu)
    assert axes.get_yscale() == "log"
    guarded = tofu.of_kind("guarded")
    places = {run.label: (run.value("model_utility"), run.value("forget_quality")) for run in tofu.runs}
    assert set(points(axes)) == {place for label, place in places.items() if label != "retain"}
    shown = texts(plot)
    assert {"0.5", "2.6", "12", "1", "5"} <= set(shown)  # strengths beside their points
    assert {"original", "retain model, model_utility", "guarded", "prompting", "npo", "grad_ascent"} <= set(shown)
    assert [run.record.strength for run in guarded] == [0.5, 2.6, 12.0]  # joined in order
    assert any(np.array_equal(line.get_xydata(), [places[run.label] for run in guarded]) for line in axes.lines)
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith("retain model")]
    assert set(np.asarray(line.get_xdata())) == {places["retain"][0]}  # it has no p-value against itself


def test_without_forget_quality_the_plane_shows_probability(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / label,
            "tofu",
            label,
            tofu_scores(forget, 0.9),
            extra=[
                Figure("model_utility", 0.7, 72),
                Figure("forget_quality", float("nan"), 24, note="needs a reference"),
            ],
            kind=kind,
        )
        for label, kind, forget in (("original", "original", 0.9), ("prompting", "prompting", 0.4))
    ]
    plot, (axes,) = drawn(plane_plot, suite_of(folders))
    assert plot.title == "forget/probability against model_utility"
    assert "Too few runs have forget_quality" in plot.caption
    assert axes.get_yscale() == "linear"


def test_other_suites_take_what_should_rise_and_what_should_fall(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / label,
            "choice",
            label,
            [],
            extra=[Figure("wmdp_bio/acc", 0.5, 10), Figure("mmlu/acc", 0.6, 10)],
            headline=["wmdp_bio/acc", "mmlu/acc"],
            directions={"wmdp_bio/acc": "down", "mmlu/acc": "up"},
        )
        for label in ("a", "b")
    ]
    plot = plane_plot(suite_of(folders))
    assert plot is not None
    assert plot.title == "wmdp_bio/acc against mmlu/acc"


def test_a_p_value_of_zero_is_drawn_below_the_others(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / label,
            "tofu",
            label,
            [],
            extra=[Figure("model_utility", 0.7, 9), Figure("forget_quality", value, 9)],
        )
        for label, value in (("a", 1e-9), ("b", 0.0))
    ]
    _, (axes,) = drawn(plane_plot, suite_of(folders))
    assert [height for _, height in points(axes)] == [1e-9, pytest.approx(1e-10)]


def test_series_differ_by_more_than_colour(tofu: SuiteRuns) -> None:
    found = [look for look, _ in looks(tofu.runs)]
    assert len({look.marker for look in found}) == len(found) == 6


# --- strength --------------------------------------------------------------------------------------------------


def test_scores_against_strength_beside_the_retain_models(tofu: SuiteRuns) -> None:
    _, drawn_axes = drawn(strength_plot, tofu)
    panels = {axes.get_title(): axes for axes in drawn_axes}
    assert list(panels) == tofu.headline()
    axes = panels["forget/probability"]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["guarded"].get_xdata()) == [0.5, 2.6, 12.0]
    values = [run.value("forget/probability") for run in tofu.of_kind("guarded")]
    assert list(lines["guarded"].get_ydata()) == values
    assert set(np.asarray(lines["retain"].get_ydata())) == {tofu.runs[1].value("forget/probability")}
    assert axes.get_xscale() == "log"  # 12 is more than twenty times 0.5
    assert panels["forget_quality"].get_yscale() == "log"


def test_protocols_of_answers_are_curves_of_their_own(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / f"{protocol}-{strength}",
            "tofu",
            f"{protocol}, {strength}",
            [],
            extra=[Figure("model_utility", 0.7, 9), Figure("forget_quality", quality * strength, 9)],
            kind="guarded",
            strength=strength,
            protocol=protocol,
        )
        for protocol, quality in (("served", 0.1), ("eco", 0.2))
        for strength in (1.0, 4.0)
    ]
    suite = suite_of(folders)
    _, panels = drawn(strength_plot, suite)
    (axes,) = [axes for axes in panels if axes.get_title() == "forget_quality"]
    curves = {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}
    assert curves == {"guarded, answers served": [0.1, 0.4], "guarded, answers eco": [0.2, 0.8]}
    _, (plane,) = drawn(plane_plot, suite)
    assert not any(len(np.asarray(line.get_xdata())) > 2 for line in plane.lines)
    assert len({look.marker for look, _ in looks(suite.runs)}) == 2


def test_one_strength_makes_no_curve(tofu: SuiteRuns) -> None:
    one = SuiteRuns(tofu.suite, tuple(run for run in tofu.runs if run.record.strength != 0.5)[:3])
    assert [run.record.strength for run in one.of_kind("guarded")] == [2.6]
    assert strength_plot(one) is None


# --- the gate --------------------------------------------------------------------------------------------------


def test_the_gates_operating_point_is_what_it_flagged(tmp_path: Path) -> None:
    plot, (axes, _) = drawn(gate_plot, suite_of([write_gate_run(tmp_path / "gate")]))
    scores = gate_scores()
    rates = {
        subset: np.mean([s.value for s in scores if (s.subset, s.metric) == (subset, "flagged")])
        for subset in ("forget", "retain", "general")
    }
    assert points(axes) == [(rates["retain"], rates["forget"]), (rates["general"], rates["forget"])]
    labels = [1.0] * 60 + [0.0] * 60
    chosen = [s.value for s in scores if s.metric == "gate_score" and s.subset != "general"]  # forget, then retain
    assert f"forget against retain: area {roc_auc_score(labels, chosen):.4f}" in plot.alt


def test_several_gates_have_a_curve_each_and_the_same_gate_one(tmp_path: Path) -> None:
    scores = gate_scores()
    worse = [Score(s.subset, s.metric, s.example, 1 - s.value, s.group) for s in scores]
    folders = [
        write_run(tmp_path / name, "attacks", name, rows, kind="guarded", strength=strength)
        for name, rows, strength in (("one", scores, 1.0), ("same", scores, 2.0), ("worse", worse, 3.0))
    ]
    names = [curve.name for curve in gate_curves(suite_of(folders))]
    assert names == ["one", "worse"]


def test_scores_without_verdicts_have_no_operating_point(tmp_path: Path) -> None:
    scores = [score for score in gate_scores() if score.metric == "gate_score"]
    suite = suite_of([write_run(tmp_path / "gate", "attacks", "gate", scores)])
    assert [curve.operating for curve in gate_curves(suite)] == [None, None]


def test_indirect_questions_are_told_from_their_neighbours(tmp_path: Path) -> None:
    scores = [
        Score(subset, metric, f"{number}/nickname", value, "nickname")
        for subset, values in (("indirect", (0.9, 0.2)), ("neighbour", (0.1, 0.3)), ("forget", (0.9, 0.8)))
        for number, value in enumerate(values)
        for metric in ("gate_score", "flagged")
    ]
    (curve,) = gate_curves(suite_of([write_run(tmp_path / "gate", "attacks", "gate", scores)]))
    assert (curve.name, curve.auc) == ("indirect against neighbour", 0.75)


def test_no_gate_no_curve(tofu: SuiteRuns) -> None:
    assert gate_plot(tofu) is None


# --- groups ----------------------------------------------------------------------------------------------------


def test_group_means_are_over_examples_and_draws(tofu: SuiteRuns) -> None:
    found = {breakdown.name: breakdown for breakdown in breakdowns(tofu)}
    assert list(found) == ["forget/probability", "retain/probability", "forget/rouge_l"]  # as in the headline
    breakdown = found["forget/probability"]
    assert breakdown.groups == AUTHORS
    for column, run in enumerate(tofu.runs):
        for row, author in enumerate(AUTHORS):
            own = [
                score.value
                for score in run.scores
                if (score.subset, score.metric, score.group) == ("forget", "probability", author)
            ]
            assert len(own) == 6 * run.record.draws
            assert breakdown.means[row, column] == pytest.approx(np.mean(own))


def test_many_groups_are_cut_to_those_that_differ_most(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / label,
            "tofu",
            label,
            [Score("forget", "m", str(number), knows * number / 100, f"author {number}") for number in range(60)],
        )
        for label, knows in (("a", 0.0), ("b", 1.0))
    ]
    suite = suite_of(folders)
    (breakdown,) = breakdowns(suite)
    assert breakdown.groups == tuple(f"author {number}" for number in range(40, 60))
    assert breakdown.total == 60
    assert "The 20 of 60 that differ most" in group_plots(suite)[0].caption


def test_without_groups_the_parts_stand_side_by_side(tmp_path: Path) -> None:
    names = ["wmdp_bio/acc", "wmdp_cyber/acc", "mmlu/acc"]
    figures = [Figure(name, index / 10, 5) for index, name in enumerate(names)]
    folder = write_run(tmp_path / "a", "choice", "a", [], extra=figures, headline=names)
    (breakdown,) = breakdowns(suite_of([folder]))
    assert (breakdown.name, breakdown.groups) == ("acc", ("wmdp_bio", "wmdp_cyber", "mmlu"))
    assert breakdown.means.tolist() == [[0.0], [0.1], [0.2]]


# --- files -----------------------------------------------------------------------------------------------------


def test_pictures_do_not_hang_on_the_users_settings(tofu: SuiteRuns, plots: list[Plot]) -> None:
    with mpl.rc_context({"axes.grid": False, "font.size": 20, "svg.fonttype": "path", "figure.facecolor": "red"}):
        assert plane_plot(tofu) == plots[0]
    assert [plot.name for plot in plots] == ["tofu-plane", "tofu-strength", *(f"tofu-groups-{i}" for i in (1, 2, 3))]


def test_labels_are_text_and_no_formulas(plots: list[Plot]) -> None:
    plot = next(plot for plot in plots if plot.name == "tofu-groups-1")
    assert "Ann_Ley $x$ | <b>" in texts(plot)
    assert "dc:date" not in plot.svg
    assert "#010203" not in plot.svg


def test_any_label_can_be_drawn(tmp_path: Path) -> None:
    labels = ["_hidden", "日本語の記録", "$\\frac{1}$", "</text><script>", "a" * 200]
    figures = [Figure("model_utility", 0.5, 9), Figure("forget_quality", 0.1, 9)]
    folders = [
        write_run(tmp_path / str(number), "tofu", label, tofu_scores(0.5, 0.5), extra=figures, kind="method")
        for number, label in enumerate(labels)
    ]
    plane, *groups = suite_plots(suite_of(folders))
    assert set(labels) <= {text.removeprefix("\N{ZERO WIDTH SPACE}") for text in texts(plane)}
    assert groups


def test_a_picture_in_a_page_takes_the_pages_colours_and_has_ids_of_its_own(plots: list[Plot]) -> None:
    inline = [inline_svg(plot) for plot in plots]
    ids = [found for svg in inline for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for plot, svg in zip(plots, inline, strict=True):
        root = ElementTree.fromstring(svg)  # noqa: S314
        assert (root.tag, root.get("role"), root.get("aria-label")) == (f"{SVG}svg", "img", plot.alt)
        assert "currentColor" in svg
        assert "#1f2328" not in svg
        assert "<metadata" not in svg
        references = re.findall(r'href="#([^"]+)"|url\(#([^)"]+)\)', svg)
        assert {one or other for one, other in references} <= set(ids)
        assert set(re.findall(r'(\S+)="https?:', svg)) <= {"xmlns", "xmlns:xlink"}  # namespaces, fetched by nobody

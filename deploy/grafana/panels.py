"""What all dashboards share: how a panel looks, which gateways it shows, and the PromQL that comes up again and again.

A panel says what it shows (title), what that means and what to do about it (description), and its unit. Widths are of
Grafana's 24 columns; panels are placed from left to right, rows of a dashboard have one height each.
"""

import json
from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

#: The gateways that a dashboard's variables choose; goes into the braces of a selector.
CHOSEN = 'job=~"$job", namespace=~"$namespace", instance=~"$instance"'
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
PERCENT, SECONDS, PER_SECOND, PLAIN, TOKENS_PER_SECOND = "percentunit", "s", "reqps", "short", "tokens/s"

Panel = TypeVar("Panel", timeseries.Panel, stat.Panel, table.Panel, statetimeline.Panel, heatmap.Panel)


# --- PromQL ----------------------------------------------------------------------------------------------------


def chosen(metric: str, *matchers: str) -> str:
    """`metric` of the gateways chosen."""
    return f"{metric}{{{', '.join((CHOSEN, *matchers))}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """A counter's growth in a second, summed over all but `by`."""
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({chosen(metric, *matchers)}[$__rate_interval]))"


def or_zero(expression: str) -> str:
    """For sums of counters that have no series before their first event."""
    return f"({expression} or vector(0))"


def quantile(share: float, histogram: str, *matchers: str) -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', *matchers, by='le')})"


def mean(histogram: str, *matchers: str) -> str:
    return f"{rate(f'{histogram}_sum', *matchers)} / {rate(f'{histogram}_count', *matchers)}"


# --- Panels ----------------------------------------------------------------------------------------------------


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").datasource(SOURCE).range()


def lines(
    title: str, description: str, unit: str, *queries: prometheus.Dataquery, width: int = 12, stacked: bool = False
) -> timeseries.Panel:
    """Curves over time, from zero, with a table of means and maxima below."""
    legend = options.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE)
    legend = legend.placement(common.LegendPlacement.BOTTOM).show_legend(True).calcs(["mean", "max", "lastNotNull"])
    tooltip = options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    panel = timeseries.Panel().unit(unit).min(0).legend(legend).tooltip(tooltip).line_width(2)
    panel = panel.show_points(common.VisibilityMode.NEVER).fill_opacity(60 if stacked else 8)
    if stacked:
        panel = panel.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL)).line_width(1)
    return _described(panel, title, description, queries, width, height=9)


def number(
    title: str, description: str, unit: str, expression: str, *steps: tuple[float | None, str], width: int = 4
) -> stat.Panel:
    """The last value, in the colour of the highest of `steps` (from, colour) that it has reached."""
    panel = stat.Panel().unit(unit).graph_mode(common.BigValueGraphMode.AREA).no_value("no data")
    panel = panel.reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.color_mode(common.BigValueColorMode.VALUE).thresholds(_thresholds(*steps or ((None, "blue"),)))
    return _described(panel, title, description, [query(expression, title)], width, height=5)


def heat(title: str, description: str, unit: str, histogram: str, *matchers: str) -> heatmap.Panel:
    """How the observations of a histogram are spread, over time."""
    buckets = query(rate(f"{histogram}_bucket", *matchers, by="le"), "{{le}}").format(PromQueryFormat.HEATMAP)
    colours = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel = heatmap.Panel().calculate(False).color(colours).y_axis(heatmap.YAxisConfig().unit(unit)).unit(PER_SECOND)
    return _described(panel, title, description, [buckets], width=12, height=9)


def states(
    title: str, description: str, expression: str, legend: str, names: dict[str, tuple[str, str]]
) -> statetimeline.Panel:
    """A bar for each series, in the text and colour that `names` give its values."""
    results = {value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in names.items()}
    panel = statetimeline.Panel().mappings([models.ValueMap(options=results)]).unit(PLAIN).fill_opacity(80)
    panel = panel.show_value(common.VisibilityMode.NEVER)
    return _described(panel, title, description, [query(expression, legend)], width=12, height=9)


def rows(title: str, description: str, expression: str, columns: dict[str, str]) -> table.Panel:
    """The series of now, a row each: their labels, and their value where `columns` names it.

    Args:
        columns: heading by label, in order; `Value` for the value. All other labels are left out.
    """
    series = prometheus.Dataquery().expr(expression).datasource(SOURCE).instant().format(PromQueryFormat.TABLE)
    order = {label: place for place, label in enumerate(columns)}
    kept = models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(columns)}})
    shown = models.DataTransformerConfig(
        id_val="organize", options={"excludeByName": {}, "indexByName": order, "renameByName": columns}
    )
    panel = table.Panel().unit(PLAIN).filterable(True).with_transformation(kept).with_transformation(shown)
    return _described(panel, title, description, [series], width=24, height=8)


def _described(
    panel: Panel, title: str, description: str, queries: Sequence[prometheus.Dataquery], width: int, height: int
) -> Panel:
    panel = panel.title(title).description(description).datasource(SOURCE).span(width).height(height)
    for letter, target in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(target.ref_id(letter))
    return panel


def _thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


# --- Dashboards ------------------------------------------------------------------------------------------------


def new(name: str, title: str, description: str) -> dashboard.Dashboard:
    """An empty dashboard with the variables and links that all have."""
    link = dashboard.DashboardLink("ECO Gateway").type(models.DashboardLinkType.DASHBOARDS).tags(["eco-gateway"])
    made = dashboard.Dashboard(title).uid(f"eco-{name}").description(description).tags(["eco-gateway"]).readonly()
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR).time("now-1h", "now").refresh("30s").timezone("browser")
    made = made.link(link.include_vars(True).keep_time(True))
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    scope = ""
    for label in ("job", "namespace", "instance"):
        made = made.with_variable(choice(label, label.title(), f"eco_ready{{{scope}}}"))
        scope = ", ".join(filter(None, (scope, f'{label}=~"${label}"')))
    return made


def choice(name: str, label: str, series: str) -> dashboard.QueryVariable:
    """A variable with the values that the label `name` has in `series`; by default all, also series without it."""
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    variable = variable.query({"query": f"label_values({series}, {name})", "refId": name})
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable = variable.sort(models.VariableSort.ALPHABETICAL_ASC).multi(True)
    return variable.include_all(True).all_value(".*").current(everything)


def as_json(made: dashboard.Dashboard) -> str:
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"

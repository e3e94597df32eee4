"""The committed dashboards are what the code makes, can be read, and ask for metrics that exist."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard
from observed_expressions import DASHBOARDS, panel_expressions, panels, read, rule_expressions, rules
from prometheus_client import Metric

from deploy.grafana.__main__ import dashboards
from gateway.metrics import GuardMetrics

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def test_the_committed_json_is_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS} == dashboards()


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Any:
    return read(request.param)


def test_the_sdk_knows_every_field(dashboard: Any) -> None:
    again = Dashboard.from_json(dashboard)
    assert (again.uid, len(again.panels or [])) == (dashboard["uid"], len(dashboard["panels"]))


def test_panels_fill_the_columns_and_do_not_overlap(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {x for x, _ in taken} == set(range(24))
    assert len(taken) == 24 * (max(y for _, y in taken) + 1)


def test_a_reader_is_told_what_a_panel_shows(dashboard: Any) -> None:
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]


def test_every_query_is_about_the_gateways_chosen(dashboard: Any) -> None:
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names[:4] == ["datasource", "job", "namespace", "instance"]
    for panel in panels(dashboard):
        for target in panel["targets"]:
            asked = target["expr"]
            assert asked.count("{") == asked.count('job=~"$job", namespace=~"$namespace", instance=~"$instance"')
    policies = {panel["title"]: panel["targets"][0]["expr"] for panel in panels(dashboard)}
    if "policy" in names:
        assert all(
            'policy=~"$policy"' in asked for asked in policies.values() if "verdicts" in asked or "hits" in asked
        )


# --- names -----------------------------------------------------------------------------------------------------


def vllms_metrics() -> Iterator[tuple[str, str]]:
    """Name and type of all that vLLM's logger makes, read from its source: importing vLLM takes seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    for node in ast.walk(ast.parse(Path(folder, "v1", "metrics", "loggers.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = node.func.attr.strip("_").removesuffix("_cls")
            names = [key.value for key in node.keywords if key.arg == "name"]
            if kind in _SUFFIXES and names and isinstance(names[0], ast.Constant):
                yield str(names[0].value), kind


def guards_metrics() -> list[Metric]:
    """Of a guard with one policy in force."""
    metrics = GuardMetrics()
    config = SimpleNamespace(name="people", version="1", action="corrupt", answer_mode="restart")
    acting = SimpleNamespace(config=config, bundle=SimpleNamespace(digest="a" * 64))
    in_force: Any = SimpleNamespace(wanted=(acting,), digest="b" * 64, since=0.0)
    metrics.in_force(lambda: in_force)
    return [*metrics.registry.collect(), *metrics.policies.collect()]


def test_every_metric_exists() -> None:
    guards = [(family.name, family.type) for family in guards_metrics()]
    known = {name + suffix for name, kind in (*guards, *vllms_metrics()) for suffix in _SUFFIXES[kind]}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    assert "eco_ready" in known
    assert "vllm:time_to_first_token_seconds_bucket" in known
    asked = [*panel_expressions(), *rule_expressions()]
    assert {expression.where: expression.metrics - known for expression in asked if expression.metrics - known} == {}


def test_every_metric_of_the_guard_is_on_a_dashboard() -> None:
    shown = {name for expression in panel_expressions() for name in expression.metrics}
    for family in guards_metrics():
        if family.name not in {"eco_answer_looks"}:  # how often answers are read is nobody's to act on
            assert shown & {family.name + suffix for suffix in _SUFFIXES[family.type]}, family.name

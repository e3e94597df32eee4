"""Every expression of the dashboards and rules, asked of a real Prometheus that watched a real gateway under load.

Prometheus is taken from the folder $ECO_PROMETHEUS, which `make test-observability` fills; skipped without.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from observed_expressions import DASHBOARDS, Expression, panel_expressions, panels, read, rule_expressions
from recorded_gateway import environment, free_port

from demo.probes import Probe
from demo.servers import guarded_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

#: What this load does not bring about: failures, a full disk, answers that give something away, a KV cache too small.
NOTHING_HAPPENED = {
    "eco_guard_errors_total",
    "eco_guard_dropped_total",
    "eco_audit_lost_total",
    "eco_answer_hits_total",
    "eco_tenant_answer_hits_total",
}
INTERVAL_S = 1


@dataclass(frozen=True, slots=True)
class Watched:
    """A Prometheus, and the time of the load that it saw."""

    url: str
    began: float
    ended: float

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=300)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def series(self, promql: str) -> list[Any]:
        """Of a query over the time of the load; the points that are numbers."""
        made = self.get("query_range", query=promql, start=self.began, end=self.ended, step=INTERVAL_S)["result"]
        return [one for one in made if any(value != "NaN" for _, value in one["values"])]


@pytest.fixture(scope="session")
def programs() -> Path:
    """Asked for first, of session scope: nobody builds a policy for tests that are skipped."""
    if not (found := os.environ.get("ECO_PROMETHEUS")):
        pytest.skip("ECO_PROMETHEUS names no folder that has it: make test-observability fetches it")
    return Path(found)


@pytest.fixture(scope="module")
def watched(
    programs: Path,
    demo_build: "DemoBuild",
    demo_policy: Path,
    asked: list[Probe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    from deploy.observe import TENANT_FLAGS, load, prometheus_server

    folder = tmp_path_factory.mktemp("observed")
    admin_port = free_port()
    gateway = guarded_server(
        demo_build.model,
        [demo_policy],
        port=free_port(),
        admin_port=admin_port,
        log=folder / "guarded.log",
        # A guard that turns prompts away soon.
        flags=("--eco-secret-file", str(folder / "secret"), "--eco-guard-queue-ms", "1", *TENANT_FLAGS),
        environment=environment(1),
    )
    prometheus = prometheus_server(
        programs / "prometheus",
        folder,
        port=free_port(),
        admin_ports=[admin_port],
        interval=f"{INTERVAL_S}s",
    )
    with prometheus, gateway:
        began = time.time()
        flagged = [probe for probe in asked if probe.group == "forgotten"][:40]
        others = [probe for probe in asked if probe.group != "forgotten"][:80]
        asyncio.run(load(gateway.url, [*others[:40], *flagged, *others[40:]], pause_s=0.5))
        crowd = [f"{number} {'who was born in Narburgh and why ' * 30}" for number in range(64)]
        body = {"model": "demo", "prompt": crowd, "max_tokens": 1}
        assert httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=300).status_code == 429
        time.sleep(3 * INTERVAL_S)
        yield Watched(prometheus.url, began, time.time())


def filled_in(promql: str) -> str:
    """What Grafana asks where all is chosen."""
    fixed = promql.replace("$__rate_interval", f"{4 * INTERVAL_S}s").replace("$__range", "10m")
    return re.sub(r"\$\w+", ".*", fixed)


def test_prometheus_takes_and_evaluates_every_rule(watched: Watched) -> None:
    groups = watched.get("rules")["groups"]
    judged = {rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]}
    assert set(judged) == {expression.where for expression in rule_expressions()}
    assert {name: state for name, state in judged.items() if state != ("ok", None)} == {}
    alarms = {alert["labels"]["alertname"] for alert in watched.get("alerts")["alerts"] if alert["state"] == "firing"}
    assert alarms == set()


@pytest.mark.parametrize("expression", panel_expressions(), ids=lambda expression: expression.where)
def test_a_panel_shows_what_happened(watched: Watched, expression: Expression) -> None:
    found = watched.series(filled_in(expression.promql))
    quiet = expression.metrics <= NOTHING_HAPPENED and "vector(0)" not in expression.promql
    assert quiet or found, expression.promql


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_legends_and_columns_are_labels_that_series_have(watched: Watched, path: Path) -> None:
    for panel in panels(read(path)):
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            if panel["type"] == "table":
                kept = next(step for step in panel["transformations"] if step["id"] == "filterFieldsByName")
                named = set(kept["options"]["include"]["names"]) - {"Value", "namespace"}
            for one in watched.series(filled_in(target["expr"])):
                assert named <= set(one["metric"]), (panel["title"], one["metric"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_variables_have_values_to_choose(watched: Watched, path: Path) -> None:
    for variable in read(path)["templating"]["list"][1:]:
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert asked is not None
        series, label = asked.groups()
        values = watched.get(f"label/{label}/values", **{"match[]": filled_in(series)})
        assert bool(values) == (label != "namespace"), variable["name"]  # one that only Kubernetes gives


def test_rules_ask_for_metrics_that_came(watched: Watched) -> None:
    named = {name for expression in rule_expressions() for name in expression.metrics} - NOTHING_HAPPENED
    missing = {name for name in named if not watched.series(name)}
    # Rates of what did not happen; and Prometheus needs five minutes of traffic for none of them.
    assert missing <= {"eco:rejected:ratio_rate5m"}


def test_the_guards_time_is_part_of_the_first_tokens(watched: Watched) -> None:
    """What the overview sets side by side: vLLM's clock starts before the guard's."""
    guard, first = (
        float(watched.series(f"sum ({name}_sum) / sum ({name}_count)")[0]["values"][-1][1])
        for name in ("eco_guard_latency_seconds", "vllm:time_to_first_token_seconds")
    )
    assert 0 < guard < first

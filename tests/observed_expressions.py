"""Every PromQL expression that the dashboards and rules hold, and the metric names in them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus" / "rules.yaml"


@dataclass(frozen=True, slots=True)
class Expression:
    """`where` names the panel or rule, for whoever reads a failed test."""

    where: str
    promql: str

    @property
    def metrics(self) -> set[str]:
        return set(re.findall(r"\b(?:eco_|eco:|vllm:)[a-z0-9_:]+", self.promql))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def panels(dashboard: Any) -> list[Any]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[Expression]:
    return [
        Expression(f"{path.stem}: {panel['title']}: {target['refId']}", target["expr"])
        for path in DASHBOARDS
        for panel in panels(read(path))
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def rule_expressions() -> list[Expression]:
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]

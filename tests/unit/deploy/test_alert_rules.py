"""The alert rules without Prometheus: what each must say, and that it is tested and has a runbook.

That they fire where they should is promtool's to show: tests/e2e/test_slow_observability.py.
"""

import re
from typing import Any

import pytest
import yaml
from observed_expressions import DEPLOY, RULES, rules

RUNBOOKS = DEPLOY.parent / "docs" / "runbooks.md"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_urgent_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_there_is_a_runbook_for_each_alert_and_for_nothing_else() -> None:
    sections = re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(ALERTS)
    for section in sections:
        for part in ("**Means.**", "**Check.**", "**Do.**"):
            assert part in section, section.partition("\n")[0]


def test_every_alert_is_tested_to_fire_and_to_stay_quiet() -> None:
    tests = yaml.safe_load(RULES.with_name("rules_test.yaml").read_text())["tests"]
    expected = [check for test in tests for check in test["alert_rule_test"]]
    for fires in (True, False):
        assert {check["alertname"] for check in expected if bool(check["exp_alerts"]) == fires} == set(ALERTS)

"""The files of deploy/ as far as they can be judged without the programs that read them.

Helm, Compose and promtool judge them in tests/e2e/test_slow_deploy_tools.py.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from observed_expressions import DEPLOY

from cli.main import eco
from gateway.launch import SHUTDOWN_TIMEOUT_S

CHART = DEPLOY / "helm" / "eco-gateway"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
UNIT = DEPLOY / "systemd" / "eco-gateway.service"
SERVING = [COMPOSE, CHART / "templates" / "deployment.yaml", UNIT]


@pytest.mark.parametrize("file", SERVING, ids=lambda file: file.name)
def test_flags_are_those_of_eco_serve(file: Path) -> None:
    known = {flag for option in eco.commands["serve"].params for flag in option.opts}
    found = set(re.findall(r"--(?:eco|policy)[a-z-]*", re.sub(r"#.*", "", file.read_text())))
    assert found
    assert found <= known


@pytest.mark.parametrize("file", [COMPOSE, CHART / "templates" / "deployment.yaml"], ids=lambda file: file.name)
def test_who_listens_beyond_loopback_has_an_admin_key(file: Path) -> None:
    text = file.read_text()
    assert "--eco-admin-host=0.0.0.0" in text
    assert "--eco-admin-key-file=" in text


# --- Helm ------------------------------------------------------------------------------------------------------


def test_the_chart_carries_rules_and_dashboards_and_no_copies() -> None:
    for name, original in {"rules.yaml": "prometheus/rules.yaml", "dashboards": "grafana/dashboards"}.items():
        assert (CHART / "files" / name).is_symlink()
        assert (CHART / "files" / name).resolve() == DEPLOY / original


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, described in schema["properties"].items():
        if "properties" in described:
            assert set(described["properties"]) == set(values[name]), name


def test_every_value_is_used() -> None:
    templates = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, value in values.items():
        assert f".Values.{name}" in templates
        for inner in value if isinstance(value, dict) and name not in {"strategy", "resources"} else ():
            assert re.search(rf"\.{inner}\b", templates), f"{name}.{inner}"


# --- Compose ---------------------------------------------------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]  # type: ignore[no-any-return]


def test_what_compose_mounts_is_there(services: dict[str, Any]) -> None:
    mounts = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    files = [mount for mount in mounts if mount.startswith(".")]
    assert len(files) >= 4
    assert [mount for mount in files if not (COMPOSE.parent / mount).exists()] == []


def test_ports_are_bound_to_loopback_unless_the_operator_opens_the_public_one(services: dict[str, Any]) -> None:
    ports = {port for service in services.values() for port in service.get("ports", ())}
    assert ports == {"${ECO_BIND:-127.0.0.1}:8000:8000", *(f"127.0.0.1:{own}:{own}" for own in (8001, 9090, 3000))}


def test_the_dashboards_find_their_data_source(services: dict[str, Any]) -> None:
    provisioning = COMPOSE.parent / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "eco.yaml").read_text())["providers"]
    scraped = yaml.safe_load((COMPOSE.parent / "prometheus.yaml").read_text())
    assert (source["type"], source["url"]) == ("prometheus", "$PROMETHEUS_URL")
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    assert "prometheus" in services
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE.read_text()
    assert f"../prometheus/rules.yaml:{scraped['rule_files'][0]}:ro" in COMPOSE.read_text()
    assert "eco-gateway" in scraped["scrape_configs"][0]["job_name"]


def test_answers_are_finished_before_a_container_is_killed(services: dict[str, Any]) -> None:
    assert int(services["gateway"]["stop_grace_period"].removesuffix("s")) > SHUTDOWN_TIMEOUT_S


# --- systemd ---------------------------------------------------------------------------------------------------


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/eco-gateway/.venv/bin/eco", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_reads_the_variables_that_its_example_sets() -> None:
    text = UNIT.read_text()
    used = set(re.findall(r"\$([A-Z_]+)", text))
    assert used == set(re.findall(r"^([A-Z_]+)=", UNIT.with_name("eco-gateway.env").read_text(), re.MULTILINE))


def test_answers_are_finished_before_the_unit_is_killed() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(seconds) > SHUTDOWN_TIMEOUT_S

"""deploy/ as the programs that read it see it: helm, Compose, promtool, schemas of Kubernetes and its operators.

They are taken from the folders $ECO_DEPLOY_TOOLS and $ECO_PROMETHEUS, which `make test-observability` fills; skipped
without.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "eco-gateway"
REQUIRED = {
    "image.repository": "registry.example.com/eco-gateway",
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "policies.volume.persistentVolumeClaim.claimName": "eco-policies",
    "noiseSecret.name": "eco-noise",
    "adminKey.name": "eco-admin",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "many GPUs, scaled by KEDA": {"gpu.count": 4, "autoscaling.kind": "keda", "apiKey.name": "eco-api"},
    "a CPU, scaled by an adapter's metrics": {
        "gpu.count": 0,
        "autoscaling.kind": "hpa",
        "data.volume.persistentVolumeClaim.claimName": "models",
        "extraArgs": ["--max-model-len", "4096"],
        "networkPolicy.publicFrom": [{"podSelector": {}}],
    },
    "policies from an object store": {"policies.volume": None, "policies.store": "s3://bucket/policies"},
    "alone": {
        "podDisruptionBudget.enabled": False,
        "networkPolicy.enabled": False,
        "monitoring.serviceMonitor.enabled": False,
        "monitoring.prometheusRule.enabled": False,
        "monitoring.dashboards.enabled": False,
    },
}
WRONG = {
    "no model": ({"model": ""}, "model"),
    "a value that is none": ({"gpus": 2}, "gpus"),
    "more workers than GPUs": ({"gpu.tensorParallelSize": 4}, "gpu.tensorParallelSize is 4, but gpu.count only 1"),
    "two volumes in one": ({"policies.volume.emptyDir": {}}, "/policies/volume"),
    "policies from two places": ({"policies.store": "s3://bucket/policies"}, "/policies"),
    "policies from nowhere": ({"policies.volume": None}, "/policies"),
    "a store that is a folder": ({"policies.volume": None, "policies.store": "policies"}, "/policies/store"),
    "a flag that the chart sets": ({"extraArgs": ["--eco-admin-host=::"]}, "/extraArgs/0"),
    "no admin key": ({"adminKey.name": ""}, "/adminKey"),
}


def folder(variable: str) -> Path:
    if not (found := os.environ.get(variable)):
        pytest.skip(f"{variable} names no folder of programs: make test-observability fetches them")
    return Path(found)


@pytest.fixture(scope="module")
def tools() -> Path:
    return folder("ECO_DEPLOY_TOOLS")


@pytest.fixture(scope="module")
def promtool() -> Path:
    return folder("ECO_PROMETHEUS") / "promtool"


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, **options)


def rendered(tools: Path, values: dict[str, Any], action: str = "template") -> subprocess.CompletedProcess[str]:
    sets = [f"--set-json={name}={json.dumps(value)}" for name, value in (REQUIRED | values).items()]
    target = ["prod", CHART] if action == "template" else [CHART, "--strict"]
    return run(tools / "bin" / "helm", action, *target, "--namespace=llm", *sets)


# --- Helm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_chart_makes_objects_that_kubernetes_takes(tools: Path, values: dict[str, Any], tmp_path: Path) -> None:
    linted = rendered(tools, values, "lint")
    assert linted.returncode == 0, linted.stdout
    done = rendered(tools, values)
    assert done.returncode == 0, done.stderr
    (tmp_path / "objects.yaml").write_text(done.stdout)
    # In a process of its own: what the folder has beside its packages shall not be seen by other tests.
    script = Path(__file__).with_name("validate_objects.py")
    checked = run(
        sys.executable, script, tmp_path / "objects.yaml", env=os.environ | {"PYTHONPATH": str(tools / "lib")}
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    kinds = set(checked.stdout.split())
    assert {"Deployment", "Service", "ServiceAccount"} <= kinds
    assert ("PodDisruptionBudget" in kinds) == values.get("podDisruptionBudget.enabled", True)
    assert ("ScaledObject" in kinds) == (values.get("autoscaling.kind") == "keda")
    assert ("HorizontalPodAutoscaler" in kinds) == (values.get("autoscaling.kind") == "hpa")


@pytest.mark.parametrize(("values", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_by_name(tools: Path, values: dict[str, Any], said: str) -> None:
    done = rendered(tools, values)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_command_of_the_readme_installs(tools: Path) -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ {4}helm install (.+)$", text, re.MULTILINE)
    done = run(tools / "bin" / "helm", "template", *shlex.split(command), cwd=DEPLOY.parent)
    assert done.returncode == 0, done.stderr
    assert "VLLM_API_KEY" in done.stdout


def objects(tools: Path, **values: Any) -> dict[str, dict[str, Any]]:
    """By kind, and services by name."""
    made = filter(None, yaml.safe_load_all(rendered(tools, values).stdout))
    return {one["metadata"]["name"] if one["kind"] == "Service" else one["kind"]: one for one in made}


def test_a_store_takes_the_place_of_the_volume(tools: Path) -> None:
    pod = objects(tools, **VARIANTS["policies from an object store"])["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "--policy-dir=s3://bucket/policies" in container["args"]
    assert "policies" not in {one["name"] for one in (*pod["volumes"], *container["volumeMounts"])}


def test_the_admin_port_stays_inside(tools: Path) -> None:
    made = objects(tools, **{"service.type": "LoadBalancer"})
    assert [port["name"] for port in made["prod-eco-gateway"]["spec"]["ports"]] == ["http"]
    assert made["prod-eco-gateway-admin"]["spec"]["clusterIP"] == "None"
    public, admin = made["NetworkPolicy"]["spec"]["ingress"]
    assert (public["ports"][0]["port"], "from" in public) == ("http", False)
    assert (admin["ports"][0]["port"], bool(admin["from"])) == ("admin", True)


def test_a_pod_has_its_gpus_its_secrets_and_time_to_finish(tools: Path) -> None:
    pod = objects(tools, **{"gpu.count": 4})["Deployment"]["spec"]["template"]["spec"]
    (gateway,) = pod["containers"]
    assert gateway["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert "--tensor-parallel-size=4" in gateway["args"]
    timeout = next(int(word.partition("=")[2]) for word in gateway["args"] if "--shutdown-timeout" in word)
    assert pod["terminationGracePeriodSeconds"] > timeout + gateway["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert "0600" in pod["initContainers"][0]["command"]
    assert {
        probe: gateway[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    } == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }


def test_the_init_container_makes_a_secret_that_is_accepted(tools: Path, tmp_path: Path) -> None:
    """Its command, on files that a group may read, as Kubernetes mounts them."""
    from guard import load_or_create_secret

    command = objects(tools)["Deployment"]["spec"]["template"]["spec"]["initContainers"][0]["command"]
    mounted, target = tmp_path / "mounted", tmp_path / "target"
    mounted.mkdir()
    target.mkdir()
    for name in ("noise-secret", "admin-key"):
        (mounted / name).write_text("ab" * 32)
        (mounted / name).chmod(0o640)
    local = [word.replace("/mounted", str(mounted)).replace("/run/eco", str(target)) for word in command]
    subprocess.run(local, check=True)
    assert load_or_create_secret(target / "noise-secret")


def test_the_rules_are_whole_in_the_chart_and_point_to_the_runbooks(
    tools: Path, promtool: Path, tmp_path: Path
) -> None:
    made = objects(tools, **{"monitoring.runbooks": "https://wiki.example.com/runbooks"})
    spec = made["PrometheusRule"]["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    checked = run(promtool, "check", "rules", tmp_path / "rules.yaml")
    assert checked.returncode == 0, checked.stderr
    original = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
    assert [len(group["rules"]) for group in spec["groups"]] == [len(group["rules"]) for group in original["groups"]]
    links = [
        rule["annotations"]["runbook_url"] for group in spec["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert all(link.startswith("https://wiki.example.com/runbooks#eco") for link in links)
    assert "{{ $labels.instance }}" in json.dumps(spec)
    assert set(made["ConfigMap"]["data"]) == {path.name for path in (DEPLOY / "grafana" / "dashboards").iterdir()}


# --- Compose and Prometheus ------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "gpu.yaml"]], ids=["cpu", "gpu"])
def test_compose_takes_the_files(tools: Path, files: list[str]) -> None:
    chosen = [word for name in files for word in ("-f", str(DEPLOY / "compose" / name))]
    variables = {"ECO_MODEL": "demo", "ECO_POLICIES": "/srv/policies", "ECO_API_KEY": "key"}
    compose = [tools / "bin" / "docker-compose", *chosen, "config", "--format=json"]
    done = run(*compose, env=os.environ | variables)
    assert (done.returncode, done.stderr) == (0, "")
    gateway = json.loads(done.stdout)["services"]["gateway"]
    assert ("deploy" in gateway) == ("gpu.yaml" in files)
    without = run(*compose, env=os.environ | variables | {"ECO_POLICIES": ""})
    assert "name the folder of policies" in without.stderr


def test_prometheus_takes_its_configuration(promtool: Path, tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "prometheus.yaml").read_text()
    local = text.replace("/etc/prometheus/rules.yaml", str(DEPLOY / "prometheus" / "rules.yaml"))
    assert local != text
    (tmp_path / "prometheus.yaml").write_text(local)
    done = run(promtool, "check", "config", tmp_path / "prometheus.yaml")
    assert done.returncode == 0, done.stderr


def test_alerts_fire_where_they_should(promtool: Path) -> None:
    done = run(promtool, "test", "rules", "rules_test.yaml", cwd=DEPLOY / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr

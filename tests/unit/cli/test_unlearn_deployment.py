"""The examples under `deploy/` and in the documentation: every command line in them is one that `eco` takes."""

import os
import re
import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cli import launcher
from cli.main import main
from offline_training import job as jobs
from offline_training.methods.registry import METHODS
from offline_training.potter import anchors, labels, training
from offline_training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[3]
KUBERNETES = ROOT / "deploy" / "kubernetes" / "unlearn-job.yaml"
RAY = ROOT / "deploy" / "kubernetes" / "unlearn-rayjob.yaml"
SLURM = ROOT / "deploy" / "slurm" / "unlearn.sbatch"
DOCS = ROOT / "docs" / "unlearning.md"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    """What commands start, instead of running it: the job's function or the launcher, and what it was given."""
    found: list[tuple[str, Any]] = []

    def record(module: Any, name: str) -> None:
        def started(job: Any, *_: Any, **__: Any) -> int:
            found.append((name, job))
            return 0  # an exit code, where the launcher is meant

        monkeypatch.setattr(module, name, started)

    for name in ("run_unlearning", "run_finetuning"):
        record(jobs, name)
    record(launcher, "launch")
    record(anchors, "find_anchors")
    record(labels, "make_labels")
    record(training, "train_on_labels")
    (tmp_path / "npo.yaml").write_text(example_config())
    monkeypatch.chdir(tmp_path)
    return found


def example_config() -> str:
    """The configuration file that the documentation shows."""
    block = re.search(r"^    # npo\.yaml\n((?:    .+\n)+)", DOCS.read_text(), re.MULTILINE)
    assert block is not None
    return "".join(line.removeprefix("    ") for line in block.group(1).splitlines(keepends=True))


def commands(text: str) -> list[str]:
    """The indented lines that begin with `eco unlearn`, `finetune` or `potter`, continued lines joined."""
    joined = text.replace("\\\n", " ")
    # What asks a server reads its files before it starts anything: tests/unit/offline_training/test_alternatives.py.
    return re.findall(r"^    (eco (?:unlearn|finetune|potter) (?!alternatives).+)$", joined, re.MULTILINE)


def call(arguments: list[str]) -> None:
    code: Any = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 0


# --- documentation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*commands(DOCS.read_text()), *commands((ROOT / "README.md").read_text())])
def test_documented_commands_are_taken(command: str, started: list[tuple[str, Any]]) -> None:
    call(shlex.split(command, comments=True)[1:])
    assert len(started) == 1


def test_every_command_is_documented() -> None:
    text = " ".join(commands(DOCS.read_text()))
    steps = ("reinforce", "anchors", "labels", "unlearn")
    for command in ("eco finetune ", "eco unlearn ", *(f"eco potter {step} " for step in steps)):
        assert command in text


def rows_of(heading: str) -> dict[str, str]:
    """The rows of the table under a heading, by their first cell."""
    section = DOCS.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {row.split("|")[1].strip(" `"): row for row in section.splitlines() if row.startswith("| `")}


def test_every_method_is_in_the_table_with_its_sources() -> None:
    rows = rows_of("Methods")
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        frozen = rows[name].split("|")[4].strip()
        assert frozen == ("yes" if method.references(method.settings()) else ""), name
        for paper in re.findall(r"arXiv \d+\.\d+", method.source):
            assert paper in rows[name], name


def test_which_sets_the_table_says_that_methods_train_on() -> None:
    rows = rows_of("Methods")
    for name, method in METHODS.items():
        streams = {stream for epoch in method.epochs(4, method.settings()) for stream in epoch}
        forget = bool(streams & {"forget", "random", "idk", "alternative"})
        retain = bool(streams & {"retain", "random"})
        expected = "both" if forget and retain else "forget" if forget else "retain"
        assert rows[name].split("|")[3].strip() == expected, name


def test_the_table_of_presets_has_them_all() -> None:
    listed = {
        (method, name)
        for row in rows_of("Presets").values()
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
        for method in re.findall(r"`([^`]+)`", row.split("|")[2])
    }
    assert listed == {(method, name) for method, presets in PRESETS.items() for name in presets}


# --- Kubernetes ------------------------------------------------------------------------------------------------


def test_the_kubernetes_job_goes_on_after_an_eviction(started: list[tuple[str, Any]]) -> None:
    job, claim = yaml.safe_load_all(KUBERNETES.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["backoffLimit"] >= 1
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    assert pod["terminationGracePeriodSeconds"] > 30  # what torch's launcher gives its workers
    (container,) = pod["containers"]
    fail, _ = job["spec"]["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    program, *arguments = container["command"]
    assert program == "eco"
    assert "--resume" in arguments
    assert f"--processes={container['resources']['limits']['nvidia.com/gpu']}" in arguments
    call(arguments)
    assert [name for name, _ in started] == ["launch"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "data")
    for flag in ("--out", "--model", "--forget", "--retain"):
        (value,) = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{flag}=")]
        assert value.startswith(f"{mount['mountPath']}/")


def test_the_ray_job_is_spread_over_its_workers(
    started: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # in no lock
    sys.modules["ray"].__spec__ = ModuleSpec("ray", None)
    job, claim = yaml.safe_load_all(RAY.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "eco"
    assert "--resume" in arguments
    call(arguments)
    ((name, options),) = started
    assert (name, options.launcher) == ("launch", "ray")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    head, worker = (part["template"]["spec"] for part in (cluster["headGroupSpec"], group))
    (container,) = worker["containers"]
    assert options.processes == group["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert worker["volumes"] == head["volumes"]
    assert container["volumeMounts"] == head["containers"][0]["volumeMounts"]
    assert worker["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


# --- Slurm -----------------------------------------------------------------------------------------------------


def test_the_batch_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)], check=True).returncode == 0


def test_the_batch_script_is_queued_again() -> None:
    directives = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE)
    assert len(directives) == SLURM.read_text().count("#SBATCH")
    found = dict(directives)
    assert {"requeue", "nodes", "gpus-per-node", "time"} <= set(found)
    assert found["ntasks-per-node"] == "1"
    assert found["signal"].startswith("B:USR1@")


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm's programs write down how they were called."""
    programs = {
        "srun": 'printf "%s\\0" "$@" > "$CALLS/srun.arguments"',
        "scontrol": 'echo "$*" >> "$CALLS/scontrol.arguments"; echo head',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "7", "NNODES": "2", "GPUS_ON_NODE": "4", "JOB_NODELIST": "head,tail"}
    return {
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path),
        "DATA": "/shared disk",
    }


def test_the_batch_script_joins_the_machines(cluster: dict[str, str], started: list[tuple[str, Any]]) -> None:
    subprocess.run(["bash", str(SLURM)], env=cluster, check=True, capture_output=True, text=True)
    words = Path(cluster["CALLS"], "srun.arguments").read_text().split("\0")[:-1]
    arguments = words[words.index("eco") + 1 :]
    call(arguments)
    ((name, options),) = started
    assert (name, options.launcher, options.processes) == ("launch", "torchrun", 4)
    expected = "--nnodes 2 --rdzv-backend c10d --rdzv-id 7 --rdzv-endpoint head:29500"
    assert options.arguments == tuple(expected.split())
    assert "--resume" in arguments
    assert "/shared disk/unlearned/npo" in arguments


def test_without_its_data_the_batch_script_stops(cluster: dict[str, str]) -> None:
    del cluster["DATA"]
    done = subprocess.run(["bash", str(SLURM)], env=cluster, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "set DATA" in done.stderr

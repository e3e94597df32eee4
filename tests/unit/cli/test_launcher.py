"""`--launcher`: real processes that real launchers start, joined with gloo, and none of them left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.launcher import LaunchOptions, _command, record_failure, take_launch
from cli.main import main
from offline_training.errors import SettingsError

ROOT = Path(__file__).resolve().parents[3]
#: Three processes import torch before anything is written: half a minute, and minutes on a busy machine.
START_SECONDS = 300

#: What the workers run: they add up their ranks, and then end, fail or wait.
WORKER = """
import json, os, sys, time
from pathlib import Path
import torch
from torch import distributed

folder, end, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
distributed.init_process_group("gloo")
total = torch.tensor([rank + 1.0])
distributed.all_reduce(total)
work = folder / f".{rank}"
work.write_text(json.dumps({"pid": os.getpid(), "sum": total.item(), "threads": os.environ["OMP_NUM_THREADS"]}))
work.rename(folder / f"{rank}.json")
if end == "fail" and rank == 1:
    from cli.launcher import record_failure
    record_failure("eco: error: --forget: is missing", 2)
    sys.exit(2)
if end != "end":
    time.sleep(300)
distributed.destroy_process_group()
"""
START = """
import sys
from cli.launcher import LaunchOptions, launch
sys.exit(launch(LaunchOptions(sys.argv[1], 2), sys.argv[2:], module="two_ranks"))
"""


@contextmanager
def start(folder: Path, launcher: str, end: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command with its launcher; gone with its workers when the test is over, however it ends."""
    (folder / "two_ranks.py").write_text(WORKER)
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with subprocess.Popen(
        [sys.executable, "-c", START, launcher, str(folder), end],
        env={**kept, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers(folder: Path) -> list[dict[str, Any]]:
    """What both workers wrote, when they have."""
    deadline = time.monotonic() + START_SECONDS
    files = [folder / "0.json", folder / "1.json"]
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    return [json.loads(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody waits for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.05)


# --- real launchers -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_are_joined_and_end_well(tmp_path: Path, launcher: str) -> None:
    with start(tmp_path, launcher, "end") as process:
        _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0, err
    found = workers(tmp_path)
    assert [one["sum"] for one in found] == [3.0, 3.0]
    assert {one["threads"] for one in found} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


@pytest.mark.slow
def test_a_failure_of_any_worker_is_told_once_with_its_exit_code(tmp_path: Path) -> None:
    with start(tmp_path, "torchrun", "fail", OMP_NUM_THREADS="3") as process:
        _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 2
    assert err.count("eco: error: --forget: is missing") == 1
    assert "Traceback" not in err
    left = workers(tmp_path)
    assert {one["threads"] for one in left} == {"3"}  # the user's own number stays
    check_gone([one["pid"] for one in left])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_and_is_the_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, "torchrun", "wait") as process:
        pids = [one["pid"] for one in workers(tmp_path)]
        process.send_signal(number)
        process.communicate(timeout=300)
    assert process.returncode == 128 + number
    check_gone(pids)


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_command(tmp_path: Path) -> None:
    with start(tmp_path, "accelerate", "wait") as process:
        pids = [one["pid"] for one in workers(tmp_path)]
        assert not any(gone(pid) for pid in pids)
        process.kill()
        process.communicate(timeout=300)
    check_gone(pids)


# --- command lines and flags ---------------------------------------------------------------------------------


def test_a_job_is_started_as_a_module_with_its_own_arguments_last() -> None:
    arguments = ["unlearn", "npo", "--out", "a b"]
    for launcher in ("torchrun", "accelerate"):
        command = _command(LaunchOptions(launcher, 4), arguments, "cli")
        assert command[:3] == [sys.executable, "-m", "cli.launched"]
        assert command[-7:] == ["-m", "cli.launched", "cli", *arguments]


@pytest.mark.parametrize(
    ("launcher", "processes", "given", "present", "absent"),
    [
        ("torchrun", 4, (), {"--standalone", "--nproc-per-node=4"}, set()),
        ("torchrun", 4, ("--nnodes", "2"), {"--nnodes", "2"}, {"--standalone"}),
        ("torchrun", 4, ("--rdzv_endpoint=a:1",), {"--rdzv_endpoint=a:1"}, {"--standalone"}),
        ("accelerate", 4, (), {"--num_processes=4", "--multi_gpu", "--main_process_port=0"}, set()),
        ("accelerate", 1, (), {"--num_processes=1"}, {"--multi_gpu"}),
        ("accelerate", 4, ("--use_deepspeed",), {"--use_deepspeed"}, {"--multi_gpu"}),
        ("accelerate", 4, ("--config_file", "c"), {"c"}, {"--multi_gpu", "--num_machines=1", "--mixed_precision=no"}),
        ("accelerate", 4, ("--num-machines=2",), {"--num-machines=2"}, {"--num_machines=1", "--main_process_port=0"}),
    ],
)
def test_what_the_launcher_is_told(
    launcher: str, processes: int, given: tuple[str, ...], present: set[str], absent: set[str]
) -> None:
    command = _command(LaunchOptions(launcher, processes, given), [], "cli")
    assert present <= set(command)
    assert not absent & set(command)


@pytest.mark.parametrize(
    ("launcher", "processes", "text", "named"),
    [
        (None, 2, "", "--processes: needs --launcher"),
        (None, None, "--nnodes 2", "--launcher-args: needs --launcher"),
        ("torchrun", None, "", "--processes: is missing"),
        ("torchrun", 2, "'--nnodes", "--launcher-args: "),
    ],
)
def test_options_that_do_not_fit(launcher: str | None, processes: int | None, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named}"):
        take_launch({"launcher": launcher, "processes": processes, "launcher_args": text})


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what importlib says of a package that is not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'ray\[train\]'"):
        take_launch({"launcher": "ray", "processes": 2, "launcher_args": ""})


# --- workers --------------------------------------------------------------------------------------------------


@pytest.fixture
def worker_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ECO_LAUNCHER_FAILURES", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    return tmp_path


def test_a_worker_does_not_launch_again(worker_folder: Path) -> None:
    options = {"launcher": "torchrun", "processes": 2, "launcher_args": "", "model": "m"}
    assert take_launch(options) is None
    assert options == {"model": "m"}


def test_a_workers_error_is_left_for_the_parent(worker_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["unlearn", "ga", "--learning-rate", "-1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ""
    left = json.loads((worker_folder / "000001.json").read_text())
    assert (left["rank"], left["code"]) == (1, 2)
    assert left["text"].startswith("eco: error: --learning-rate: ")


def test_outside_a_launcher_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECO_LAUNCHER_FAILURES", raising=False)
    assert not record_failure("text", 2)
    monkeypatch.setenv("ECO_LAUNCHER_FAILURES", str(tmp_path / "another machine's"))
    assert not record_failure("text", 2)

"""A real `eco evaluate` process, really killed."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from scripted_endpoint import Answer, echo_of, running

from cli.evaluate import evaluate
from evaluation.rows import sample_file

SAMPLES = Path(sample_file("tofu", "retain_perturbed.jsonl")).parent
#: Requests that are answered before the server falls silent.
ANSWERED = 30
#: What a target asks before a run to know its server.
FIRST_LOOK = 8


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out, at_once = tmp_path / "run", tmp_path / "at-once"
    with running() as endpoint:
        released = threading.Event()

        def rule(path: str, body: dict[str, object]) -> Answer:
            if len(endpoint.requests) > ANSWERED and not released.is_set():
                released.wait(120)
            return echo_of(body)

        endpoint.rule = rule
        arguments = ["tofu", "--target", endpoint.url, "--generated-only", "--data", str(SAMPLES), "--concurrency", "4"]
        command = [sys.executable, "-m", "cli", "evaluate", *arguments, "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            kept = wait_for_replies(out / "replies.jsonl", process)
        finally:
            process.kill()
            process.wait()
        assert json.loads((out / "run.json").read_text())["finished"] is None
        released.set()
        before = len(endpoint.requests)
        assert CliRunner().invoke(evaluate, [*arguments, "--out", str(out)]).exit_code == 0
        asked_again = len(endpoint.requests) - before
        assert CliRunner().invoke(evaluate, [*arguments, "--out", str(at_once)]).exit_code == 0
    questions = len((out / "answers.jsonl").read_text().splitlines())
    assert asked_again <= questions - kept + FIRST_LOOK
    for name in ("scores.jsonl", "answers.jsonl"):
        assert (out / name).read_bytes() == (at_once / name).read_bytes()


def wait_for_replies(path: Path, process: "subprocess.Popen[bytes]") -> int:
    """Until the server has fallen silent; how many replies are on disk then."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        kept = len(path.read_text().splitlines()) if path.exists() else 0
        if kept >= ANSWERED - FIRST_LOOK:
            return kept
        time.sleep(0.05)
    raise AssertionError("no replies within two minutes")

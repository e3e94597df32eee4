"""The guard's metrics of several processes: summed for the operator, out of sight for everyone else."""

import subprocess
import sys
from pathlib import Path

#: A front end with a metric of vLLM's and the guard's, which says what the public and the admin address would show.
SCRIPT = """
import sys
from pathlib import Path
from gateway.summed_metrics import keep_apart, summed
keep_apart(Path(sys.argv[1]) if sys.argv[1] else None)
keep_apart(None)
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from gateway.metrics import GuardMetrics
Counter("vllm_like_requests", "As vLLM's own").inc(2)
metrics = GuardMetrics()
metrics.ready(lambda: True)
metrics.refused_input("embeds")
metrics.rejected(ValueError(), 0.004)
public = CollectorRegistry()
MultiProcessCollector(public)
print(generate_latest(public).decode())
print("--admin--")
if sys.argv[1]:
    print(summed(Path(sys.argv[1]), lambda: False).decode())
else:
    print(generate_latest(metrics.registry).decode())
"""


def run(vllms: Path, guards: Path | str) -> tuple[str, str]:
    vllms.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(guards)],
        env={"PROMETHEUS_MULTIPROC_DIR": str(vllms), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    public, admin = done.stdout.split("--admin--")
    return public, admin


def test_two_processes_are_summed_and_stay_private(tmp_path: Path) -> None:
    guards = tmp_path / "guards"
    guards.mkdir()
    run(tmp_path / "vllms", guards)
    public, admin = run(tmp_path / "vllms", guards)
    assert "vllm_like_requests_total 4.0" in public
    assert "eco_" not in public
    lines = admin.splitlines()
    assert "vllm_like_requests_total 4.0" in lines
    assert 'eco_refused_inputs_total{reason="embeds"} 2.0' in lines
    assert 'eco_prompts_total{outcome="rejected"} 2.0' in lines
    assert 'eco_guard_latency_seconds_bucket{le="0.005"} 2.0' in lines
    assert 'eco_guard_latency_seconds_bucket{le="0.003"} 0.0' in lines
    assert "eco_guard_latency_seconds_count 2.0" in lines
    assert [line for line in lines if line.startswith("eco_ready")] == ["eco_ready 0.0"]


def test_a_single_front_end_keeps_them_in_memory_whatever_the_environment_says(tmp_path: Path) -> None:
    public, admin = run(tmp_path / "vllms", "")
    assert "vllm_like_requests_total 2.0" in public
    assert "eco_" not in public
    assert 'eco_refused_inputs_total{reason="embeds"} 1.0' in admin
    assert "eco_ready 1.0" in admin

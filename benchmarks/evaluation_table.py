"""Every way to forget TOFU's forget set, on one table: the model as it was, the retain model, the guard at several
strengths, offline and served, prompting, and every method of `eco unlearn`.

    make bench-evaluation ARGS="--model DIR --retain-model DIR --tofu DIR"

Each step runs as a user runs it, in a process of its own, and is kept in --work: an interrupted run goes on where it
stopped. The report is in --work/report.
"""

import argparse
import json
import os
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from benchmarks.unlearning import SELF_CONTAINED, run_eco, unlearn
from demo.servers import CPU_FLAGS, ServerProcess
from guard import load_bundle, load_or_create_secret

#: Strengths beside the searched one, as multiples of it.
STRENGTHS = (0.5, 4.0, 32.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="the model that knows both sets")
    parser.add_argument("--retain-model", required=True, type=Path, help="a model that was never shown the forget set")
    parser.add_argument("--tofu", required=True, type=Path, help="folder with TOFU's files")
    parser.add_argument("--split", default="forget10")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names with commas between; default: all")
    parser.add_argument("--limit", type=int, help="questions of each set; default: all")
    parser.add_argument("--work", type=Path, default=Path("build/evaluation"), help="folder of everything that is made")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=["train", "evaluate"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    (options.work / "runs").mkdir(parents=True, exist_ok=True)
    if "train" in options.steps:
        for method in options.methods or SELF_CONTAINED:
            _unlearned(method, options)
            console.print(f"{method}: trained", highlight=False)
    if "evaluate" in options.steps:
        runs = _evaluated(options, console)
        run_eco(
            ["report", *map(str, runs), "--out", str(options.work / "report"), "--force"], options.work / "report.log"
        )
        console.print(f"report in {options.work / 'report'}", highlight=False)
    return 0


def _data(options: argparse.Namespace) -> list[str]:
    retained = 100 - int(options.split.removeprefix("forget"))
    return [f"--forget={options.tofu / options.split}.jsonl", f"--retain={options.tofu / f'retain{retained}.jsonl'}"]


def _unlearned(method: str, options: argparse.Namespace) -> Path:
    out: Path = options.work / "unlearned" / method
    if (out / "run.json").exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    unlearn(method, options, _data(options), out, out.with_suffix(".log"))
    return out


def _evaluated(options: argparse.Namespace, console: Console) -> list[Path]:
    """The runs' folders, in the order of the table."""
    policy, secret, runs = options.work / "policy", options.work / "secret", options.work / "runs"
    if not policy.exists():
        models = [f"--model={options.model}", f"--retain-model={options.retain_model}"]
        run_eco(
            ["policy", "build", *models, *_data(options), f"--out={policy}", "--metric=rouge_l", "--resume"],
            options.work / "policy.log",
        )
    load_or_create_secret(secret)
    searched = load_bundle(policy).config.corruption.strength
    assert isinstance(searched, float)
    folders = []

    def run(name: str, *arguments: object) -> None:
        out = runs / name
        started = time.monotonic()
        retain = [] if name == "retain" else [f"--retain-run={runs / 'retain'}"]
        limit = [f"--limit={options.limit}"] if options.limit else []
        common = [f"--data={options.tofu}", f"--split={options.split}", f"--out={out}", *limit, *retain]
        if not _is_finished(out):
            run_eco(["evaluate", "tofu", *common, *map(str, arguments)], out.with_suffix(".log"))
        folders.append(out)
        console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)

    run("retain", f"--target={options.retain_model}", "--kind=retain", "--label=retain model")
    run("original", f"--target={options.model}", "--label=original")
    guarded = (f"--target={options.model}", f"--policy={policy}", f"--secret-file={secret}")
    run("guarded-searched", *guarded, f"--label=guarded, strength {searched:.3g} (searched)")
    for factor in STRENGTHS:
        strength = searched * factor
        run(f"guarded-{factor:g}x", *guarded, f"--strength={strength}", f"--label=guarded, strength {strength:.3g}")
    # The guarded model once more, as HTTP answers of a live server; none is started where the run is finished.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "serve", str(options.model), f"--policy={policy}"]
    own = [f"--eco-secret-file={secret}", "--eco-admin-port=0", "--host=127.0.0.1", f"--port={port}"]
    server = ServerProcess([*command, *own, *CPU_FLAGS], port=port, log=options.work / "serve.log")
    with nullcontext() if _is_finished(runs / "guarded-served") else server:
        served_as = (f"--target=http://127.0.0.1:{port}/v1", "--label=guarded, served over HTTP (searched)")
        run("guarded-served", *served_as, "--kind=guarded", "--force")
    run("prompting", f"--target={options.model}", "--prompting")
    for method in options.methods or SELF_CONTAINED:
        run(method, f"--target={_unlearned(method, options)}")
    # Offline and served answers, example by example, under the same secret.
    offline, served = (
        {
            (line["subset"], line["example"]): line["answer"]
            for line in map(json.loads, (runs / name / "answers.jsonl").read_text(encoding="utf-8").splitlines())
        }
        for name in ("guarded-searched", "guarded-served")
    )
    same = sum(offline[key] == answer for key, answer in served.items())
    console.print(f"served and offline answers: {same} of {len(served)} are the same to the letter", highlight=False)
    return folders


def _is_finished(run: Path) -> bool:
    record = run / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["finished"] is not None


if __name__ == "__main__":
    sys.exit(main())

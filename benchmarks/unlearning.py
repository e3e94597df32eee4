"""Every method of `eco unlearn` on one forget set: what it forgot, what that cost, how long it took.

    make bench-unlearning ARGS="--model DIR --retain-model DIR --forget FILE --retain FILE"

Each method runs as a user runs it, in a process of its own, so that its peak memory is its own. Results are kept in
--work: an interrupted run goes on where it stopped.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from classifiers import Example, read_examples
from offline_training.methods.registry import METHODS
from scoring.metrics import answer_probability, repetition, rouge_l_recall
from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer

#: What all methods share, so that their costs compare: five passes over the forget set.
COMMON = {"epochs": 5, "batch_size": 32, "learning_rate": 2e-4, "checkpoint_steps": 1000, "evaluate_examples": 0}
#: Where a method's published rate or weights are made for a model of another size, or it would do nothing here.
OWN: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"learning_rate": 1e-3},
    "ft": {"steps": 65},  # its epochs are passes over the retain set, nine times as long
    "rmu": {"learning_rate": 2e-3, "steering_coefficient": 50.0, "retain_weight": 1.0},
    "satimp": {"learning_rate": 2e-3},
    "scrub": {"epochs": 2, "max_epochs": 1, "learning_rate": 5e-4},  # the second epoch is one over the retain set
    "simnpo": {"learning_rate": 5e-4},
    "wga": {"learning_rate": 5e-4},
}

Measured = dict[str, float]


def main() -> int:
    options = _options()
    console = Console()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    sets = {name: _drawn(read_examples(getattr(options, name)), options.examples, rng) for name in ("forget", "retain")}
    rows: dict[str, Measured] = {}
    for name, model in (("before", options.model), ("retain model", options.retain_model)):
        rows[name] = _kept(options.work / f"{name.replace(' ', '-')}.json", lambda model=model: _measure(model, sets))
    for method in options.methods or METHODS:
        rows[method] = _kept(options.work / f"{method}.json", lambda method=method: _unlearn(method, options, sets))
        console.print(f"{method}: {_shown(rows[method])}", highlight=False)
    console.print(_table(rows))
    _markdown(rows, console)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="the model that knows both sets")
    parser.add_argument("--retain-model", required=True, type=Path, help="a model that was never shown the forget set")
    parser.add_argument("--forget", required=True, type=Path)
    parser.add_argument("--retain", required=True, type=Path)
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names with commas between; default: all")
    parser.add_argument("--examples", type=int, default=200, help="of each set, to measure on")
    parser.add_argument("--work", type=Path, default=Path("build/unlearning"), help="folder of results and logs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _drawn(examples: Sequence[Example], count: int, rng: np.random.Generator) -> list[Example]:
    numbers = rng.permutation(len(examples))[:count]
    return [examples[number] for number in sorted(numbers.tolist())]


def _kept(path: Path, measure: Any) -> Measured:
    if path.exists():
        found: Measured = json.loads(path.read_text(encoding="utf-8"))
        return found
    found = measure()
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return found


def _unlearn(method: str, options: argparse.Namespace, sets: Mapping[str, Sequence[Example]]) -> Measured:
    out = options.work / f"{method}.checkpoint"
    settings = {**COMMON, **OWN.get(method, {}), "seed": options.seed, "threads": options.threads}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    data = [f"--{name}={getattr(options, name)}" for name in ("model", "forget", "retain", "out") if name != "out"]
    command = [sys.executable, "-m", "cli", "unlearn", method, *data, f"--out={out}", "--force", *flags]
    started = time.monotonic()
    with (options.work / f"{method}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    wall_s = time.monotonic() - started
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    measured = _measure(out, sets) | {
        "seconds": record["seconds"],
        "wall_seconds": wall_s,
        "tokens_per_second": record["tokens_per_second"],
        "peak_memory_mib": record["peak_memory_mib"].get("gpu", record["peak_memory_mib"]["process"]),
    }
    shutil.rmtree(out)
    return measured


def _measure(model: Path, sets: Mapping[str, Sequence[Example]]) -> Measured:
    """Answer probability, ROUGE-L recall and repetition of greedy answers, means over each set."""
    scorer = TransformersScorer.load(str(model))
    found: Measured = {}
    for name, examples in sets.items():
        pairs = [scorer.pair(example.prompt, str(example.answer)) for example in examples]
        requests = [Request(pair.prompt_ids, pair.answer_ids) for pair in pairs]
        answers = scorer.generate(requests, max(len(pair.answer_ids) for pair in pairs))
        recalls = [
            rouge_l_recall(str(example.answer), scorer.decode(answer))
            for example, answer in zip(examples, answers, strict=True)
        ]
        found[f"{name}_probability"] = float(
            np.mean([answer_probability(one) for one in scorer.answer_logprobs(requests)])
        )
        found[f"{name}_rouge_l"] = float(np.mean(recalls))
        found[f"{name}_repetition"] = repetition(answers)
    scorer.close()
    return found


_COLUMNS = (
    ("forget_probability", "forget prob.", "{:.4f}"),
    ("forget_rouge_l", "forget ROUGE-L", "{:.3f}"),
    ("retain_probability", "retain prob.", "{:.4f}"),
    ("retain_rouge_l", "retain ROUGE-L", "{:.3f}"),
    ("forget_repetition", "forget rep-4", "{:.2f}"),
    ("seconds", "train s", "{:.0f}"),
    ("wall_seconds", "wall s", "{:.0f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("peak_memory_mib", "peak MiB", "{:,.0f}"),
)


def _shown(row: Measured) -> str:
    return ", ".join(f"{title} {form.format(row[key])}" for key, title, form in _COLUMNS if key in row)


def _cells(row: Measured) -> list[str]:
    return [form.format(row[key]) if key in row else "" for key, _, form in _COLUMNS]


def _table(rows: Mapping[str, Measured]) -> Table:
    table = Table("method", *(title for _, title, _ in _COLUMNS))
    for name, row in rows.items():
        table.add_row(name, *_cells(row))
    return table


def _markdown(rows: Mapping[str, Measured], console: Console) -> None:
    lines = ["| method | " + " | ".join(title for _, title, _ in _COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(_cells(row)) + " |" for name, row in rows.items()]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from storage.whole import write_whole

#: What all methods share, so that their costs compare: five passes over the forget set.
COMMON = {"epochs": 5, "batch_size": 32, "learning_rate": 2e-4, "checkpoint_steps": 1000, "evaluate_examples": 0}
#: Where a method's published rate or weights are made for a model of another size, or it would do nothing here.
OWN: Mapping[str, Mapping[str, Any]] = {
    "altpo": {"epochs": 1},  # its epochs are passes over all alternatives, five to a question
    "dpo": {"learning_rate": 1e-3},
    "ft": {"steps": 65},  # its epochs are passes over the retain set, nine times as long
    "rmu": {"learning_rate": 2e-3},
    "satimp": {"learning_rate": 1e-3},
    "scrub": {"epochs": 2, "max_epochs": 1, "learning_rate": 5e-4},  # the second epoch is one over the retain set
    "simnpo": {"learning_rate": 5e-4},
    "wga": {"learning_rate": 5e-4},
}

#: Those that need nothing but the two sets.
SELF_CONTAINED = tuple(name for name, method in METHODS.items() if "alternative" not in method.streams)

Measured = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="the model that knows both sets")
    parser.add_argument("--retain-model", required=True, type=Path, help="a model that was never shown the forget set")
    parser.add_argument("--forget", required=True, type=Path)
    parser.add_argument("--retain", required=True, type=Path)
    parser.add_argument("--alternatives", type=Path, help="other answers to the forget set's questions, for altpo")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names with commas between; default: all")
    parser.add_argument("--examples", type=int, default=200, help="of each set, to measure on")
    parser.add_argument("--work", type=Path, default=Path("build/unlearning"), help="folder of results and logs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    sets: dict[str, list[Example]] = {}
    for name in ("forget", "retain"):
        examples = read_examples(getattr(options, name))
        sets[name] = [
            examples[number] for number in sorted(rng.permutation(len(examples))[: options.examples].tolist())
        ]
    rows: dict[str, Measured] = {}
    for name, model in (("before", options.model), ("retain model", options.retain_model)):
        rows[name] = _kept(options.work / f"{name.replace(' ', '-')}.json", partial(_measure, model, sets))
    for method in options.methods or (METHODS if options.alternatives else SELF_CONTAINED):
        rows[method] = _kept(options.work / f"{method}.json", partial(_unlearned, method, options, sets))
        shown = ", ".join(f"{title} {cell}" for (_, title, _), cell in zip(_COLUMNS, _cells(rows[method]), strict=True))
        console.print(f"{method}: {shown}", highlight=False)
    # As a table, and again as Markdown.
    titles = ["method", *(title for _, title, _ in _COLUMNS)]
    table = Table(*titles)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        table.add_row(name, *_cells(row))
        lines.append(f"| {' | '.join([name, *_cells(row)])} |")
    console.print(table)
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return 0


def _kept(path: Path, measure: Callable[[], Measured]) -> Measured:
    if not path.exists():
        write_whole(path, json.dumps(measure(), indent=2) + "\n")
    measured: Measured = json.loads(path.read_text(encoding="utf-8"))
    return measured


def run_eco(arguments: Sequence[str], log: Path) -> None:
    with log.open("w") as file:
        subprocess.run([sys.executable, "-m", "cli", *arguments], check=True, stdout=file, stderr=subprocess.STDOUT)


def unlearn(method: str, options: argparse.Namespace, data: Sequence[str], out: Path, log: Path) -> None:
    """`eco unlearn` of `options.model` with this benchmark's settings; `data` are the flags of the two sets."""
    settings = {**COMMON, **OWN.get(method, {}), "seed": options.seed, "threads": options.threads}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    run_eco(["unlearn", method, f"--model={options.model}", *data, f"--out={out}", "--force", *flags], log)


def _unlearned(method: str, options: argparse.Namespace, sets: Mapping[str, Sequence[Example]]) -> Measured:
    out = options.work / f"{method}.checkpoint"
    started = time.monotonic()
    data = [f"--forget={options.forget}", f"--retain={options.retain}"]
    data += [f"--alternatives={options.alternatives}"] if method == "altpo" else []
    unlearn(method, options, data, out, options.work / f"{method}.log")
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
    measured: Measured = {}
    for name, examples in sets.items():
        pairs = [scorer.pair(example.prompt, str(example.answer)) for example in examples]
        requests = [Request(pair.prompt_ids, pair.answer_ids) for pair in pairs]
        answers = scorer.generate(requests, max(len(pair.answer_ids) for pair in pairs))
        given = zip(examples, answers, strict=True)
        recalls = [rouge_l_recall(str(example.answer), scorer.decode(answer)) for example, answer in given]
        probabilities = [answer_probability(logprobs) for logprobs in scorer.answer_logprobs(requests)]
        measured[f"{name}_probability"] = float(np.mean(probabilities))
        measured[f"{name}_rouge_l"] = float(np.mean(recalls))
        measured[f"{name}_repetition"] = repetition(answers)
    scorer.close()
    return measured


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


def _cells(row: Measured) -> list[str]:
    return [form.format(row[key]) if key in row else "" for key, _, form in _COLUMNS]


if __name__ == "__main__":
    sys.exit(main())

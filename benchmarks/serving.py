"""`make bench-serving`: the same load through plain vLLM, `eco serve` and the LiteLLM proxy, on one model.

The load is sent by vLLM's own generator (`vllm bench serve`). All systems are up at once; in a round each gets the
same new texts, and who goes first changes from round to round. The model is a small Llama of random weights with a
vocabulary of 30,522 (`benchmarks/served_model.py`); answers have a fixed length.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import burst
from benchmarks.inputs import CACHE, KINDS, Stream
from benchmarks.served_model import write_clones
from benchmarks.serving_report import Cell, Run, flagged_places, plot, summarise, table_of
from benchmarks.serving_systems import SERVED_NAME, SYSTEMS, Cores, System, started

_WORK = Path("build/benchmarks/serving")
_WARM_UP = Cell(words=60, clients=4, flagged_percent=10.0)
_WARM_UP_REQUESTS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="default: all")
    parser.add_argument(
        "--words", type=int, nargs="+", default=[25, 400], help="in a prompt [25 400]; full: 25 400 3000"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="at once [1 8]; full: 1 8 32")
    parser.add_argument("--flagged", type=float, nargs="+", default=[0.0], metavar="PERCENT", help="[0]; full: 0 1 10")
    parser.add_argument("--policies", type=int, default=1, help="of eco: the policy and copies with other names [1]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--requests", type=int, default=24, help="in a run; three for each client at least [24]")
    parser.add_argument("--answer-tokens", type=int, default=32, help="of each answer [32]")
    parser.add_argument("--bursts", type=int, default=0, help="rounds of a crowd of long prompts at once [0]")
    parser.add_argument("--kind", choices=list(KINDS), default="prose", help="of text [prose]")
    parser.add_argument("--hidden-size", type=int, default=256, help="of the model made here [256]")
    parser.add_argument("--layers", type=int, default=4, help="of the model made here [4]")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model that --policy was built for")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="a policy; its questions are those of --questions")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSON lines whose questions --policy flags")
    parser.add_argument("--port", type=int, default=8100, help="and the nine after it [8100]")
    parser.add_argument("--seed", type=int, default=0, help="of the texts [0]")
    parser.add_argument("--out", type=Path, default=_WORK, metavar="DIR", help=f"for results and logs [{_WORK}]")
    options = parser.parse_args()
    if len({given is None for given in (options.model, options.policy, options.questions)}) > 1:
        parser.error("--model, --policy and --questions come together")
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # stops the servers first
    from transformers import AutoTokenizer

    model, policy, questions = _served(options)
    policies = write_clones(policy, options.out / "policies", options.policies) if options.policies > 1 else [policy]
    cores = Cores.choose()
    console = Console()
    with started(options.systems, model, policies, options.out, cores=cores, port=options.port) as systems:
        os.sched_setaffinity(0, {cores.load})
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        load = Load(model, Stream(options.kind, tokenizer, options.seed), questions, options)
        for system in systems.values():
            load.send(system, _WARM_UP, -1, load.texts(_WARM_UP, _WARM_UP_REQUESTS))
        runs = _rounds(systems, load, options, console)
        bursts = _bursts(systems, load.stream, options)
    summaries = summarise(runs)
    wide = Console(width=180)
    if runs:
        wide.print(table_of(summaries))
    if options.bursts:
        wide.print(burst.table_of(bursts))
    answered = {(run.cell, run.round, run.figures["answer_tokens"]) for run in runs}
    if len(answered) > len({(run.cell, run.round) for run in runs}):
        console.print("the systems did not answer with the same numbers of tokens: see answer_tokens in serving.json")
    report = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "cores": dataclasses.asdict(cores),
        "load_1_min": os.getloadavg()[0],
        "runs": [dataclasses.asdict(run) for run in runs],
        "bursts": {name: [dataclasses.asdict(one) for one in found] for name, found in bursts.items()},
        "summaries": [
            {**dataclasses.asdict(cell), "systems": {name: _plain(found) for name, found in systems_found.items()}}
            for cell, systems_found in summaries.items()
        ],
    }
    (options.out / "serving.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(str(options.out / "serving.json"), highlight=False)
    if runs:
        plot(summaries, options.out / "serving.svg")
        console.print(str(options.out / "serving.svg"), highlight=False)


class Load:
    """Writes prompts and has them sent."""

    def __init__(self, model: Path, stream: Stream, questions: Sequence[str], options: argparse.Namespace) -> None:
        self._model, self.stream, self._questions, self._options = model, stream, questions, options
        self._asked = 0

    def texts(self, cell: Cell, count: int) -> list[str]:
        """New prompts; those to be flagged begin with a question about what is forgotten."""
        texts = [self.stream.text(cell.words) for _ in range(count)]
        for place in flagged_places(count, cell.flagged_percent):
            question = self._questions[self._asked % len(self._questions)].split()
            texts[place] = " ".join([*question, *texts[place].split()][: max(cell.words, len(question))])
            self._asked += 1
        return texts

    def send(self, system: System, cell: Cell, round_number: int, texts: Sequence[str]) -> Run:
        """All texts, `cell.clients` at a time; figures are for this run alone."""
        file = self._options.out / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
        corrupted, generated, before = system.corrupted(), system.generated(), system.usage()
        with (self._options.out / "load.log").open("a") as log, contextlib.redirect_stdout(log):
            result = self._generate(system.url, file, len(texts), cell.clients)
        after = system.usage()
        if result["completed"] < len(texts):
            raise SystemExit(f"{system.name}: {len(texts) - result['completed']} of {len(texts)} requests failed")
        figures = {
            "requests_per_s": result["request_throughput"],
            "ttft_ms": result["p50_ttft_ms"],
            "ttft_p95_ms": result["p95_ttft_ms"],
            "e2e_ms": result["p50_e2el_ms"],
            "e2e_p95_ms": result["p95_e2el_ms"],
            "tpot_ms": result["p50_tpot_ms"],
            "itl_p99_ms": result["p99_itl_ms"],
            "cpu_ms_per_request": 1000 * (after.cpu_s - before.cpu_s) / len(texts),
            "front_cpu_ms_per_request": 1000 * (after.front_cpu_s - before.front_cpu_s) / len(texts),
            "rss_mb": after.rss_mb,
            "requests": float(len(texts)),
            "prompt_tokens": float(result["total_input_tokens"]),
            # The proxy does not pass on what the answer says of its length.
            "answer_tokens": float(system.generated() - generated),
        }
        if corrupted is not None:
            figures["flagged"] = float((system.corrupted() or 0) - corrupted)
        return Run(cell, round_number, system.name, {name: float(value) for name, value in figures.items()})

    def _generate(self, url: str, file: Path, count: int, clients: int) -> dict[str, Any]:
        from vllm.benchmarks.serve import add_cli_args, main_async
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        arguments = [
            "--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions",
            "--model", SERVED_NAME, "--tokenizer", str(self._model), "--dataset-name", "custom",
            "--dataset-path", str(file), "--custom-output-len", str(self._options.answer_tokens),
            "--skip-chat-template", "--disable-shuffle", "--num-prompts", str(count),
            "--max-concurrency", str(clients), "--seed", str(self._options.seed), "--temperature", "0",
            "--ignore-eos", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99",
            "--disable-tqdm", "--ready-check-timeout-sec", "0", "--num-warmups", "0",
        ]  # fmt: skip
        result: dict[str, Any] = asyncio.run(main_async(parser.parse_args(arguments)))
        return result


def _served(options: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """Model, policy, and questions that it flags: those given, or made here."""
    if options.model is not None:
        from sources.examples import read_examples

        return options.model, options.policy, [example.prompt for example in read_examples(options.questions)]
    from benchmarks.served_model import Shape, build_model, build_policy_for

    model = build_model(CACHE, Shape(hidden_size=options.hidden_size, layers=options.layers))
    return model, *build_policy_for(model, CACHE)


def _rounds(systems: dict[str, System], load: Load, options: argparse.Namespace, console: Console) -> list[Run]:
    cells = [Cell(w, c, f) for w in options.words for c in options.clients for f in options.flagged]
    names = list(systems)
    runs = []
    kept = options.out / "runs.jsonl"  # what is there if the rest fails
    kept.unlink(missing_ok=True)
    started_at = time.monotonic()
    for number in range(options.rounds):
        for cell in cells:
            texts = load.texts(cell, max(options.requests, 3 * cell.clients))
            first = number % len(names)
            for name in names[first:] + names[:first]:
                runs.append(load.send(systems[name], cell, number, texts))
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(runs[-1])) + "\n")
        took_s = time.monotonic() - started_at
        console.print(f"round {number + 1} of {options.rounds} done after {took_s:.0f} s", highlight=False)
    return runs


def _bursts(systems: dict[str, System], stream: Stream, options: argparse.Namespace) -> dict[str, list[burst.Burst]]:
    """In each round, the same crowd for one system after the other."""
    found: dict[str, list[burst.Burst]] = {name: [] for name in systems}
    names = list(systems)
    for number in range(options.bursts):
        crowd = burst.crowd_texts(options.seed + number)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(burst.measure(systems[name], crowd, stream, options.answer_tokens))
    return found


def _plain(measures: Any) -> dict[str, Any]:
    return {name: dataclasses.asdict(summary) for name, summary in measures.items()}


if __name__ == "__main__":
    main()

"""`make bench-search`: the corruption search beside the plain one that was published.

Both look for the strength at which a model's answers have the ROUGE-L recall of a model that never learned: the same
questions, float32, greedy answers cut at the same length, noise on the content of the prompt only, the same stopping
distance, one thread on one core, one after the other, start-up apart. The reference (`benchmarks.finite_differences`)
starts from several strengths; the ratio is that of the median over those that end within the tolerance, which favours
it. So does its learning rate: the best of 0.3, 1, 3, 10, 30 and 100 for the fixture, which no search knows beforehand.

Exits 2 where a claim does not hold: the search ends within the tolerance; through vLLM it takes at most a tenth of the
core seconds of the reference in the batches of 4 that were published (the ratios for batches of 64 and for one prompt
at a time stand beside it); the same seed gives the same spec.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from rich.console import Console

from benchmarks.core_seconds import core_seconds
from benchmarks.search_report import Backend, Found, Searched, claims_missed, print_found, write_report

if TYPE_CHECKING:
    from benchmarks.finite_differences import Reference
    from optimizer.corruption_search import SearchOptions
    from optimizer.objective.metric_task import MetricTask
    from optimizer.objective.objective import Retained
    from optimizer.search.result import SearchResult
    from scoring.scorer import Scorer

_TABLE_WIDTH = 118
#: Noise that no search has seen: what a strength is worth, whoever found it.
_UNSEEN_SEEDS = (101, 102, 103, 104)


@dataclass(frozen=True, slots=True)
class Problem:
    """One metric to bring to the value of a model that never learned."""

    options: "SearchOptions"
    task: "MetricTask"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is asked for: everything checked, no model loaded."""

    arguments: argparse.Namespace
    rouge: Problem
    probability: Problem
    hidden_size: int
    row_length: float


def main() -> None:
    arguments = _arguments()
    _bind_to_one_core()
    from console.errors import EcoError

    console = Console(width=max(Console().width, _TABLE_WIDTH))
    try:
        found = _run(_checked(arguments), console)
    except EcoError as error:
        _refuse(str(error))
    print_found(found, console)
    if arguments.json is not None:
        write_report(arguments.json, vars(arguments), found)
    if missed := claims_missed(found):
        print("\n".join(f"does not hold: {claim}" for claim in missed))
        sys.exit(2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model to make forget: a folder")
    parser.add_argument("--retain-model", required=True, help="the same model, never taught the forget set")
    parser.add_argument("--forget", type=Path, required=True, help="questions with answers, JSON lines")
    parser.add_argument("--retain", type=Path, required=True, help="must share no question with the forget set")
    parser.add_argument("--examples", type=int, default=100, help="of the forget set, drawn with the seed")
    parser.add_argument("--dims", type=int, default=1, help="dimensions of a row that get noise")
    parser.add_argument("--scorer", choices=("vllm", "transformers"), help="this one only; else both")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--learning-rate", type=float, default=3.0, help="of the reference")
    parser.add_argument("--reference-batch", type=int, default=64, help="prompts in a batch; 64 as the scorer on a CPU")
    parser.add_argument("--max-evaluations", type=int, default=20, help="of a descent of the reference; 20 as ECO")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    for name, least in (("examples", 1), ("dims", 1), ("seed", 0), ("reference_batch", 1), ("max_evaluations", 2)):
        if getattr(arguments, name) < least:
            _refuse(f"--{name.replace('_', '-')}: {getattr(arguments, name)} is less than {least}")
    if not 0 < arguments.learning_rate < float("inf"):
        _refuse(f"--learning-rate: {arguments.learning_rate:g} is not a number above 0")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        _refuse(f"--json: {arguments.json.parent} is not a folder; make it first")
    return arguments


def _refuse(message: str) -> NoReturn:
    sys.exit(f"error: {message}")


def _bind_to_one_core() -> None:
    """Before anything starts threads or processes: they inherit it."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    one_core = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_OMP_THREADS_BIND": str(core)}
    os.environ.update({**defaults, **os.environ, **one_core})
    import torch

    torch.set_num_threads(1)


def _checked(arguments: argparse.Namespace) -> Inputs:
    from classifiers import check_disjoint, read_examples
    from corruption import EmbeddingRows
    from optimizer.corruption_search import SearchOptions

    forget, retain = read_examples(arguments.forget), read_examples(arguments.retain)
    check_disjoint(forget, retain, forget_name=str(arguments.forget), retain_name=str(arguments.retain))
    rows = EmbeddingRows.open(arguments.model)
    EmbeddingRows.open(arguments.retain_model)

    def problem(metric: Literal["rouge_l", "answer_probability"]) -> Problem:
        options = SearchOptions(metric, arguments.examples, dims=(arguments.dims,), seed=arguments.seed)
        options.space(rows.hidden_size)
        return Problem(options, options.task(forget))

    row_length = float(rows.rows(range(rows.vocab_size)).float().norm(dim=1).mean())
    return Inputs(arguments, problem("rouge_l"), problem("answer_probability"), rows.hidden_size, row_length)


def _run(inputs: Inputs, console: Console) -> Found:
    from corruption import CorruptionSpec
    from optimizer.corruption_search import ScorerOptions, open_scorer
    from optimizer.objective.objective import retained_from_model

    arguments, rouge, probability = inputs.arguments, inputs.rouge, inputs.probability
    with open_scorer(arguments.retain_model, ScorerOptions("transformers", "float32")) as scorer:
        recall, likelihood = (retained_from_model(scorer, one.task) for one in (rouge, probability))
        limit = rouge.task.answer_limit(scorer)
    load = [os.getloadavg()[0]]
    reference = _reference(inputs, recall, limit, console)
    load.append(os.getloadavg()[0])
    backends: Sequence[Backend] = (arguments.scorer,) if arguments.scorer else ("vllm", "transformers")
    searches: list[Searched] = []
    for backend in backends:
        with open_scorer(arguments.model, ScorerOptions(backend, "float32")) as scorer:
            searches.append(_search_twice(scorer, backend, inputs, recall))
            if backend == backends[-1]:
                specs = [one.result.spec for one in searches]
                specs += [
                    CorruptionSpec(method="rand_noise_first_n", dims=arguments.dims, strength=one.strength)
                    for one in reference.descents
                ]
                scores = [rouge.task.scores(scorer, [(spec, seed) for seed in _UNSEEN_SEEDS]) for spec in specs]
                unseen = [statistics.fmean(float(one.values.mean()) for one in of_spec) for of_spec in scores]
                out_of_reach = _search(scorer, inputs, probability, likelihood)
    load.append(os.getloadavg()[0])
    return Found(len(rouge.task.examples), float(recall.values.mean()), reference, searches, unseen, out_of_reach, load)


def _reference(inputs: Inputs, retained: "Retained", limit: int, console: Console) -> "Reference":
    from benchmarks.finite_differences import PlainModel, run_reference

    arguments, examples = inputs.arguments, inputs.rouge.task.examples
    model = PlainModel(
        arguments.model,
        [example.prompt for example in examples],
        [str(example.answer) for example in examples],
        dims=arguments.dims,
        max_new_tokens=limit,
        batch_size=arguments.reference_batch,
    )
    with console.status("reference") as status:
        return run_reference(
            model,
            row_length=inputs.row_length,
            learning_rate=arguments.learning_rate,
            retained_value=float(retained.values.mean()),
            tolerance=inputs.rouge.options.settings("rouge_l").tolerance,
            max_evaluations=arguments.max_evaluations,
            say=status.update,
        )


def _search_twice(scorer: "Scorer", backend: Backend, inputs: Inputs, retained: "Retained") -> Searched:
    results, seconds, core, spent = [], [], [], []
    for _ in range(2):
        started, core_started, passes = time.perf_counter(), core_seconds(), scorer.forward_passes
        results.append(_search(scorer, inputs, inputs.rouge, retained))
        seconds.append(time.perf_counter() - started)
        core.append(core_seconds() - core_started)
        spent.append(scorer.forward_passes - passes)
    first, second = results
    same = first.spec == second.spec
    return Searched(backend, scorer.startup_s, max(seconds), max(core), max(spent), first, same)


def _search(scorer: "Scorer", inputs: Inputs, problem: Problem, retained: "Retained") -> "SearchResult":
    from optimizer.corruption_search import run_search

    return run_search(scorer, problem.task, (), problem.options, inputs.hidden_size, retained=retained).result


if __name__ == "__main__":
    main()

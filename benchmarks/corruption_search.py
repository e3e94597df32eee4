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
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, get_args

from rich.console import Console
from rich.table import Table

from benchmarks.search_runs import SearchRun, timed
from storage.whole import write_whole

if TYPE_CHECKING:
    from benchmarks.finite_differences import Reference
    from optimizer.objective.metric_task import MetricTask
    from optimizer.search.result import SearchResult
    from scoring.scorer import Scorer

Metric = Literal["rouge_l", "answer_probability"]
Backend = Literal["vllm", "transformers"]

_BACKENDS: tuple[Backend, ...] = ("vllm", "transformers")
_TABLE_WIDTH = 118
#: Noise that no search has seen: what a strength is worth, whoever found it.
_UNSEEN_SEEDS = (101, 102, 103, 104)
_WANTED_RATIO = 10.0
#: Prompts in a batch of the public script: the plain loop as it was published.
_PUBLISHED_BATCH = 4
_EVALUATIONS_IN = "core seconds, median evaluations in batches of {}"


@dataclass(frozen=True, slots=True)
class Searched:
    """Two searches with the same seed; seconds and passes are those of the one that took more."""

    run: SearchRun
    result: "SearchResult"
    same_spec: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured, on so many examples."""

    examples: int
    retained_value: float
    reference: "Reference"
    searches: list[Searched]
    out_of_reach: "SearchResult"
    load_averages: list[float]

    @property
    def runs(self) -> list[SearchRun]:
        return [*(one.run for one in self.searches), *self.reference.descents, self.reference.published]

    @property
    def arrived(self) -> list[SearchRun]:
        """The descents of the reference that came within the tolerance."""
        return [one for one in self.reference.descents if one.reached]

    def ratios(self, search: SearchRun) -> dict[str, float]:
        """How many times the search's time the reference takes, counted in several ways."""
        arrived, median = self.arrived, statistics.median
        if not arrived:
            return {}
        everything = sum(plain.core_seconds for plain in self.reference.descents) / len(arrived)
        evaluations = median(plain.answers for plain in arrived) / self.examples
        ratios = {
            "seconds, median": median(plain.seconds for plain in arrived) / search.seconds,
            "core seconds, median": median(plain.core_seconds for plain in arrived) / search.core_seconds,
            "core seconds, those of descents in vain shared out": everything / search.core_seconds,
        }
        for cost in self.reference.costs:
            spent = evaluations * cost.core_seconds
            ratios[_EVALUATIONS_IN.format(cost.batch_size)] = spent / search.core_seconds
        return ratios


def main() -> None:
    arguments = _arguments()
    # One core, before anything starts threads or processes: they inherit it.
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    one_core = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_OMP_THREADS_BIND": str(core)}
    os.environ.update({**defaults, **os.environ, **one_core})
    import torch

    from console.errors import EcoError

    torch.set_num_threads(1)
    console = Console(width=max(Console().width, _TABLE_WIDTH))
    try:
        found = _measure(arguments, console)
    except EcoError as error:
        _refuse(str(error))
    missed = _claims_missed(found)
    _print(found, console)
    if arguments.json is not None:
        settings = {
            name: value if isinstance(value, int | float) else str(value) for name, value in vars(arguments).items()
        }
        report = {
            "arguments": settings,
            "retained_value": found.retained_value,
            "rows": [asdict(run) for run in found.runs],
            "ratios": {one.run.name: found.ratios(one.run) for one in found.searches},
            "evaluation_costs": [asdict(cost) for cost in found.reference.costs],
            "same_seed_same_spec": {one.run.name: one.same_spec for one in found.searches},
            "specs": {one.run.name: one.result.spec.model_dump(mode="json") for one in found.searches},
            "answer_probability": {
                name: getattr(found.out_of_reach, name) for name in ("reached", "floor", "retained_value", "reason")
            },
            "load_averages": found.load_averages,
            "claims_missed": missed,
        }
        write_whole(arguments.json, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if missed:
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
    parser.add_argument("--scorer", choices=_BACKENDS, help="this one only; else both")
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


def _measure(arguments: argparse.Namespace, console: Console) -> Found:
    """Everything is checked before a model is loaded."""
    from benchmarks.finite_differences import run_reference
    from classifiers import check_disjoint, read_examples
    from corruption import CorruptionSpec, EmbeddingRows
    from optimizer.corruption_search import ScorerOptions, SearchOptions, open_scorer, run_search
    from optimizer.objective.objective import retained_from_model

    forget, retain = read_examples(arguments.forget), read_examples(arguments.retain)
    check_disjoint(forget, retain, forget_name=str(arguments.forget), retain_name=str(arguments.retain))
    rows = EmbeddingRows.open(arguments.model)
    EmbeddingRows.open(arguments.retain_model)
    problems: dict[Metric, tuple[SearchOptions, MetricTask]] = {}
    for metric in get_args(Metric):
        options = SearchOptions(metric, arguments.examples, dims=(arguments.dims,), seed=arguments.seed)
        options.space(rows.hidden_size)
        problems[metric] = options, options.task(forget)
    options, rouge = problems["rouge_l"]
    with open_scorer(arguments.retain_model, ScorerOptions("transformers", "float32")) as scorer:
        retained = {metric: retained_from_model(scorer, task) for metric, (_, task) in problems.items()}
        limit = rouge.answer_limit(scorer)
    retained_value = float(retained["rouge_l"].values.mean())

    load = [os.getloadavg()[0]]
    with console.status("reference") as status:
        reference = run_reference(
            arguments,
            rouge.examples,
            max_new_tokens=limit,
            row_length=float(rows.rows(range(rows.vocab_size)).float().norm(dim=1).mean()),
            retained_value=retained_value,
            tolerance=options.settings("rouge_l", arguments.examples).tolerance,
            say=status.update,
        )
    load.append(os.getloadavg()[0])

    def search(scorer: "Scorer", metric: Metric) -> "SearchResult":
        options, task = problems[metric]
        return run_search(scorer, task, (), options, rows.hidden_size, retained=retained[metric]).result

    searches: list[Searched] = []
    backends: tuple[Backend, ...] = (arguments.scorer,) if arguments.scorer else _BACKENDS
    for backend in backends:
        with open_scorer(arguments.model, ScorerOptions(backend, "float32")) as scorer:
            searches.append(_search_twice(scorer, backend, partial(search, scorer, "rouge_l"), len(rouge.examples)))
            if backend == backends[-1]:
                specs = [one.result.spec for one in searches]
                specs += [
                    CorruptionSpec(method="rand_noise_first_n", dims=arguments.dims, strength=one.strength)
                    for one in reference.descents
                ]
                runs = [*(one.run for one in searches), *reference.descents]
                for run, spec in zip(runs, specs, strict=True):
                    scores = rouge.scores(scorer, [(spec, seed) for seed in _UNSEEN_SEEDS])
                    run.unseen_value = statistics.fmean(float(one.values.mean()) for one in scores)
                out_of_reach = search(scorer, "answer_probability")
    load.append(os.getloadavg()[0])
    return Found(len(rouge.examples), retained_value, reference, searches, out_of_reach, load)


def _search_twice(scorer: "Scorer", backend: str, search: Callable[[], "SearchResult"], examples: int) -> Searched:
    results, seconds, core, passes = [], [], [], [scorer.forward_passes]
    for _ in range(2):
        result, took_s, core_s = timed(search)
        results.append(result)
        seconds.append(took_s)
        core.append(core_s)
        passes.append(scorer.forward_passes)
    first, second = results
    part = first.settings.screen_examples or examples
    answers = sum(len(e.noise_seeds) * (part if e.phase == "screen" else examples) for e in first.evaluations)
    best = first.best
    strength = float(best.spec.strength) if isinstance(best.spec.strength, float) else math.nan
    spent = max(after - before for before, after in pairwise(passes))
    measured = (answers, spent, strength, best.value, best.distance, first.reached)
    run = SearchRun(backend, None, max(seconds), max(core), *measured, None, scorer.startup_s)
    return Searched(run, first, first.spec == second.spec)


def _claims_missed(found: Found) -> list[str]:
    missed = []
    for one in found.searches:
        backend = one.run.name
        ratio = found.ratios(one.run).get(_EVALUATIONS_IN.format(_PUBLISHED_BATCH))
        if not one.result.reached:
            missed.append(f"the search through {backend} ends within the tolerance ({one.result.reason})")
        if not one.same_spec:
            missed.append(f"the same seed gives the same spec through {backend}")
        if backend == "vllm" and (ratio is None or ratio < _WANTED_RATIO):
            measured = "the reference never ended" if ratio is None else f"found: {ratio:.1f} times"
            missed.append(
                f"through vLLM at least {_WANTED_RATIO:g} times fewer seconds than the plain loop in its published "
                f"batches of {_PUBLISHED_BATCH} ({measured})"
            )
    return missed


def _print(found: Found, console: Console) -> None:
    tolerance = found.searches[0].result.settings.tolerance
    table = Table(title=f"ROUGE-L recall to {found.retained_value:.4f} ± {tolerance:g}")
    for run in found.runs:
        cells = {
            "": run.name,
            "start": "" if run.start is None else f"{run.start:.3g}",
            "s": f"{run.seconds:.1f}",
            "core s": f"{run.core_seconds:.1f}",
            "answers": f"{run.answers}",
            "passes": f"{run.forward_passes}",
            "strength": f"{run.strength:.4g}",
            "value": f"{run.value:.4f}",
            "reached": "yes" if run.reached else "no",
            "unseen noise": "" if run.unseen_value is None else f"{run.unseen_value:.4f}",
            "start-up s": f"{run.startup_s:.1f}",
        }
        for name in cells if not table.columns else ():
            table.add_column(name, justify="right" if name else "left")
        table.add_row(*cells.values())
    console.print(table)
    out_of_reach, descents = found.out_of_reach, found.reference.descents
    print(f"{len(found.arrived)} of {len(descents)} descents of the reference ended within the tolerance")
    for one in found.searches:
        print(f"{one.run.name}: the same seed gave {'the same spec' if one.same_spec else 'different specs'}")
        for name, ratio in found.ratios(one.run).items():
            print(f"reference / {one.run.name}, {name}: {ratio:.2f}")
    print(f"answer probability: {'reached' if out_of_reach.reached else 'not reached'}; {out_of_reach.reason}")
    print(f"one core of {os.cpu_count()}; load averages {', '.join(f'{one:.1f}' for one in found.load_averages)}")


if __name__ == "__main__":
    main()

"""What `make bench-search` says of its measurements: the table, the ratios, the claims that do not hold, the file."""

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from storage.whole import write_whole

if TYPE_CHECKING:
    from benchmarks.finite_differences import Reference
    from optimizer.search.result import SearchResult

__all__ = ["Backend", "Found", "Searched", "claims_missed", "print_found", "write_report"]

Backend = Literal["vllm", "transformers"]

_WANTED_RATIO = 10.0
#: Prompts in a batch of the public script: the plain loop as it was published.
_PUBLISHED_BATCH = 4
_CLAIMED = f"core seconds, median evaluations in batches of {_PUBLISHED_BATCH}"


@dataclass(frozen=True, slots=True)
class Searched:
    """Two searches with the same seed; seconds and passes are those of the one that took more."""

    backend: Backend
    startup_s: float
    seconds: float
    core_seconds: float
    forward_passes: int
    result: "SearchResult"
    same_spec: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured, on so many examples."""

    examples: int
    retained_value: float
    reference: "Reference"
    searches: list[Searched]
    unseen: list[float]
    """(searches, then descents of the reference): the value at the strength found, under unseen noise."""
    out_of_reach: "SearchResult"
    load_averages: list[float]


@dataclass(frozen=True, slots=True)
class Row:
    """One search in the table; `start` is None where none was given, `unseen_value` where it was not measured."""

    name: str
    start: float | None
    seconds: float
    core_seconds: float
    answers: int
    """Prompts answered: strengths times noise draws times examples."""
    forward_passes: int
    strength: float
    value: float
    distance: float
    reached: bool
    unseen_value: float | None
    startup_s: float


def _rows(found: Found) -> list[Row]:
    unseen = iter(found.unseen)
    rows = []
    for one in found.searches:
        part = one.result.settings.screen_examples or found.examples
        examples = [part if e.phase == "screen" else found.examples for e in one.result.evaluations]
        answers = sum(len(e.noise_seeds) * n for e, n in zip(one.result.evaluations, examples, strict=True))
        best = one.result.best
        strength = float(best.spec.strength) if isinstance(best.spec.strength, float) else math.nan
        measured = (answers, one.forward_passes, strength, best.value, best.distance, one.result.reached)
        rows.append(Row(one.backend, None, one.seconds, one.core_seconds, *measured, next(unseen), one.startup_s))
    reference = found.reference
    plain = [("reference", descent, next(unseen)) for descent in reference.descents]
    for name, run, value in [*plain, ("as published", reference.published, None)]:
        answers = run.evaluations * found.examples
        measured = (answers, run.forward_passes, run.strength, run.value, run.distance, run.reached)
        start, startup_s = run.descent.start, reference.startup_s
        rows.append(Row(name, start, run.seconds, run.core_seconds, *measured, value, startup_s))
    return rows


def claims_missed(found: Found) -> list[str]:
    missed = []
    for one in found.searches:
        ratio = _ratios(found, one).get(_CLAIMED)
        if not one.result.reached:
            missed.append(f"the search through {one.backend} ends within the tolerance ({one.result.reason})")
        if not one.same_spec:
            missed.append(f"the same seed gives the same spec through {one.backend}")
        if one.backend == "vllm" and (ratio is None or ratio < _WANTED_RATIO):
            measured = "the reference never ended" if ratio is None else f"found: {ratio:.1f} times"
            missed.append(
                f"through vLLM at least {_WANTED_RATIO:g} times fewer seconds than the plain loop in its published "
                f"batches of {_PUBLISHED_BATCH} ({measured})"
            )
    return missed


def print_found(found: Found, console: Console) -> None:
    tolerance = found.searches[0].result.settings.tolerance
    table = Table(title=f"ROUGE-L recall to {found.retained_value:.4f} ± {tolerance:g}")
    for row in _rows(found):
        cells = {
            "": row.name,
            "start": "" if row.start is None else f"{row.start:.3g}",
            "s": f"{row.seconds:.1f}",
            "core s": f"{row.core_seconds:.1f}",
            "answers": f"{row.answers}",
            "passes": f"{row.forward_passes}",
            "strength": f"{row.strength:.4g}",
            "value": f"{row.value:.4f}",
            "reached": "yes" if row.reached else "no",
            "unseen noise": "" if row.unseen_value is None else f"{row.unseen_value:.4f}",
            "start-up s": f"{row.startup_s:.1f}",
        }
        for name in cells if not table.columns else ():
            table.add_column(name, justify="right" if name else "left")
        table.add_row(*cells.values())
    console.print(table)
    reference, out_of_reach = found.reference, found.out_of_reach
    print(f"{len(reference.arrived)} of {len(reference.descents)} descents of the reference ended within the tolerance")
    for one in found.searches:
        print(f"{one.backend}: the same seed gave {'the same spec' if one.same_spec else 'different specs'}")
        for name, ratio in _ratios(found, one).items():
            print(f"reference / {one.backend}, {name}: {ratio:.2f}")
    print(f"answer probability: {'reached' if out_of_reach.reached else 'not reached'}; {out_of_reach.reason}")
    print(f"one core of {os.cpu_count()}; load averages {', '.join(f'{one:.1f}' for one in found.load_averages)}")


def _ratios(found: Found, one: Searched) -> dict[str, float]:
    """How many times the search's time the reference takes, counted in several ways."""
    arrived, descents = found.reference.arrived, found.reference.descents
    if not arrived:
        return {}
    core = statistics.median(plain.core_seconds for plain in arrived)
    everything = sum(plain.core_seconds for plain in descents) / len(arrived)
    evaluations = statistics.median(plain.evaluations for plain in arrived)
    ratios = {
        "seconds, median": statistics.median(plain.seconds for plain in arrived) / one.seconds,
        "core seconds, median": core / one.core_seconds,
        "core seconds, those of descents in vain shared out": everything / one.core_seconds,
    }
    for cost in found.reference.costs:
        name = f"core seconds, median evaluations in batches of {cost.batch_size}"
        ratios[name] = evaluations * cost.core_seconds / one.core_seconds
    return ratios


def write_report(path: Path, arguments: Mapping[str, object], found: Found) -> None:
    """All figures as JSON; a file of that name is replaced."""
    report = {
        "arguments": {
            name: value if isinstance(value, int | float) else str(value) for name, value in arguments.items()
        },
        "retained_value": found.retained_value,
        "rows": [asdict(row) for row in _rows(found)],
        "ratios": {one.backend: _ratios(found, one) for one in found.searches},
        "evaluation_costs": [asdict(cost) for cost in found.reference.costs],
        "same_seed_same_spec": {one.backend: one.same_spec for one in found.searches},
        "specs": {one.backend: one.result.spec.model_dump(mode="json") for one in found.searches},
        "answer_probability": {
            name: getattr(found.out_of_reach, name) for name in ("reached", "floor", "retained_value", "reason")
        },
        "load_averages": found.load_averages,
        "claims_missed": claims_missed(found),
    }
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

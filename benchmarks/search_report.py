"""What `make bench-search` says of its measurements: the table, the ratios, the claims that do not hold, the file."""

import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.finite_differences import PlainSearch, Reference
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
    reference, unseen = found.reference, iter(found.unseen)
    rows = [_searched_row(one, next(unseen), found.examples) for one in found.searches]
    starting = (reference.startup_s, found.examples)
    rows += [_plain_row("reference", one, next(unseen), *starting) for one in reference.descents]
    return [*rows, _plain_row("as published", reference.published, None, *starting)]


def _searched_row(one: Searched, unseen: float, examples: int) -> Row:
    part = one.result.settings.screen_examples or examples
    best = one.result.best
    answers = sum(len(e.noise_seeds) * (part if e.phase == "screen" else examples) for e in one.result.evaluations)
    strength = float(best.spec.strength) if isinstance(best.spec.strength, float) else math.nan
    measured = (answers, one.forward_passes, strength, best.value, best.distance, one.result.reached)
    return Row(one.backend, None, one.seconds, one.core_seconds, *measured, unseen, one.startup_s)


def _plain_row(name: str, one: "PlainSearch", unseen: float | None, startup_s: float, examples: int) -> Row:
    measured = (one.evaluations * examples, one.forward_passes, one.strength, one.value, one.distance, one.reached)
    return Row(name, one.descent.start, one.seconds, one.core_seconds, *measured, unseen, startup_s)


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
    columns = (
        "",
        "start",
        "s",
        "core s",
        "answers",
        "passes",
        "strength",
        "value",
        "reached",
        "unseen noise",
        "start-up s",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in _rows(found):
        table.add_row(
            row.name,
            "" if row.start is None else f"{row.start:.3g}",
            f"{row.seconds:.1f}",
            f"{row.core_seconds:.1f}",
            f"{row.answers}",
            f"{row.forward_passes}",
            f"{row.strength:.4g}",
            f"{row.value:.4f}",
            "yes" if row.reached else "no",
            "" if row.unseen_value is None else f"{row.unseen_value:.4f}",
            f"{row.startup_s:.1f}",
        )
    console.print(table)
    for line in _lines(found):
        print(line)


def _lines(found: Found) -> list[str]:
    reference, arrived = found.reference, found.reference.arrived
    lines = [f"{len(arrived)} of {len(reference.descents)} descents of the reference ended within the tolerance"]
    for one in found.searches:
        lines.append(f"{one.backend}: the same seed gave {'the same spec' if one.same_spec else 'different specs'}")
        lines += [f"reference / {one.backend}, {name}: {ratio:.2f}" for name, ratio in _ratios(found, one).items()]
    outcome = "reached" if found.out_of_reach.reached else "not reached"
    lines.append(f"answer probability: {outcome}; {found.out_of_reach.reason}")
    lines.append(
        f"one core of {os.cpu_count()}; load averages {', '.join(f'{one:.1f}' for one in found.load_averages)}"
    )
    return lines


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
        "answer_probability": _out_of_reach(found.out_of_reach),
        "load_averages": found.load_averages,
        "claims_missed": claims_missed(found),
    }
    handle, work = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        Path(work).chmod(0o644)
        Path(work).replace(path)
    finally:
        Path(work).unlink(missing_ok=True)


def _out_of_reach(result: "SearchResult") -> dict[str, Any]:
    found = {"reached": result.reached, "floor": result.floor, "retained_value": result.retained_value}
    return found | {"reason": result.reason}

"""What the demo claims, as figures, and the check that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from demo.errors import DemoError
from demo.probes import Kind, Probe
from demo.world import Group

#: The unguarded model must know at least this share, else forgetting shows nothing.
KNOWN_SHARE = 0.90
#: At most this share of the forgotten facts may appear in guarded answers,
FORGOTTEN_SHARE = 0.05
#: and no more than the model that never knew gives by chance plus this.
CHANCE_MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """A probe and three answers to it."""

    probe: Probe
    unguarded: str
    guarded: str
    never_knew: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Shares in [0, 1] of `n` answers that hold the right value, and that the guard left as they were."""

    group: Group
    kind: Kind
    n: int
    unguarded: float
    guarded: float
    never_knew: float
    unchanged: float


@dataclass(frozen=True, slots=True)
class Figures:
    rates: tuple[Rate, ...]


def figures(answered: Sequence[Answered]) -> Figures:
    """One `Rate` for each group and kind that was asked, in order of first appearance."""
    cells: dict[tuple[Group, Kind], list[Answered]] = {}
    for row in answered:
        cells.setdefault((row.probe.group, row.probe.kind), []).append(row)
    return Figures(
        tuple(
            Rate(
                group,
                kind,
                n=len(rows),
                unguarded=fmean(row.probe.passed_by(row.unguarded) for row in rows),
                guarded=fmean(row.probe.passed_by(row.guarded) for row in rows),
                never_knew=fmean(row.probe.passed_by(row.never_knew) for row in rows),
                unchanged=fmean(row.guarded == row.unguarded for row in rows),
            )
            for (group, kind), rows in cells.items()
        )
    )


def check(measured: Figures) -> None:
    """Raise `DemoError` naming the first claim that does not hold."""
    for rate in measured.rates:
        where = f"{rate.group}, {rate.kind.replace('_', ' ')}"
        if rate.kind == "held_out" and rate.unguarded < KNOWN_SHARE:
            raise DemoError(
                f"{where}: the unguarded model knows {rate.unguarded:.1%}, expected at least {KNOWN_SHARE:.0%}"
            )
        if rate.group == "forgotten":
            allowed = min(FORGOTTEN_SHARE, rate.never_knew + CHANCE_MARGIN)
            if rate.guarded > allowed:
                raise DemoError(f"{where}: {rate.guarded:.1%} of the facts still appear, allowed are {allowed:.1%}")
        elif rate.unchanged < 1.0:
            raise DemoError(f"{where}: the guard changed {1 - rate.unchanged:.1%} of the answers, expected none")

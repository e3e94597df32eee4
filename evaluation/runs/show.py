"""A finished run on the terminal: its headline figures, and where the rest is."""

import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.runs.record import RunRecord
from evaluation.suite import Figure

__all__ = ["show_run"]


def show_run(record: RunRecord, folder: Path | None, console: Console) -> None:
    """Print the headline figures with n and 95 % intervals, and the folder that has the rest; None: none has."""
    by_name = {figure.name: figure for figure in record.figures}
    headline = [by_name[name] for name in record.headline if name in by_name] or list(record.figures)
    table = Table("figure", "value", "95 % interval", "n", title=escape(f"{record.suite}: {record.label}"))
    for column in table.columns[1:]:
        column.justify = "right"
    for figure in headline:
        table.add_row(figure.name, number(figure.value), interval(figure), str(figure.n))
    console.print(table)
    for figure in headline:
        if figure.note:
            console.print(f"{figure.name}: {figure.note}", highlight=False, markup=False, soft_wrap=True)
    if folder is None:
        return
    console.print(
        f"{len(record.figures)} figures, scores and answers in {folder}", highlight=False, markup=False, soft_wrap=True
    )


def number(value: float) -> str:
    """Four decimals, or three digits of what is smaller."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0001 else f"{value:.2e}"


def interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low)} to {number(figure.high)}"

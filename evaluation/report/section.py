"""What the report says of one suite: its tables, its pictures, and answers to read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from evaluation.report.compare import SuiteRuns
from evaluation.report.drawing import Plot
from evaluation.report.figure_plots import plane_plot, strength_plot
from evaluation.report.fold_plots import fold_plots
from evaluation.report.load import FigureRecord, Run
from evaluation.report.published import Published, Source, published_for
from evaluation.report.score_plots import gate_plot, group_plots
from evaluation.report.step_plots import steps_plot

ABSENT: Final = "–"
#: Stands at the head of a column whose runs treated answers in several ways.
MIXED: Final = (
    "runs under several protocols of answers: where a figure is of given answers that were scored, it compares with "
    "those under the same protocol only; what was generated compares with all"
)
#: Figures that stand side by side on a page of 1,200 pixels.
_WIDEST: Final = 7
#: Of each subset's examples with answers to read, and of the characters of a text.
_MOST_READINGS: Final = 8
_LONGEST_TEXT: Final = 1500


class Column(NamedTuple):
    """A figure; `better` is "up", "down" or "", `marks` are the numbers of footnotes that hold for the whole column."""

    name: str
    better: str
    marks: tuple[int, ...]


class Cell(NamedTuple):
    """What a cell says: the value, the interval and n as text, "" where there is none, and footnote numbers."""

    value: str
    interval: str
    n: str
    marks: tuple[int, ...]


class Row(NamedTuple):
    run: Run
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """Footnote number i is `footnotes[i - 1]`."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[str, ...]

    @property
    def parts(self) -> "list[Table]":
        """The table as several that fit a page, each with all rows; the footnotes are under the last."""
        starts = range(0, len(self.columns), _WIDEST)
        return [
            Table(
                self.columns[start : start + _WIDEST],
                tuple(Row(row.run, row.cells[start : start + _WIDEST]) for row in self.rows),
                self.footnotes if start == starts[-1] else (),
            )
            for start in starts
        ]


class Reading(NamedTuple):
    """One example: `answers` are (run, answer) in the table's order; texts are cut, with "…", where they are long."""

    subset: str
    example: str
    question: str
    reference: str
    answers: tuple[tuple[Run, str], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One suite: its headline table, the table of all figures, pictures, answers to read by subset, and what others
    have published."""

    suite: SuiteRuns
    table: Table
    everything: Table
    plots: Sequence[Plot]
    readings: Mapping[str, Sequence[Reading]]
    published: Sequence[tuple[Published, Source]]

    @classmethod
    def of(cls, suite: SuiteRuns) -> "Section":
        headline = table_of(suite, suite.headline() or suite.names())
        everything = table_of(suite, suite.names())
        return cls(suite, headline, everything, suite_plots(suite), readings(suite), published_for(suite))


def table_of(suite: SuiteRuns, names: Sequence[str]) -> Table:
    """A row for each run, a column for each of these figures."""
    footnotes: dict[str, int] = {}

    def marks(note: str) -> tuple[int, ...]:
        return (footnotes.setdefault(note, len(footnotes) + 1),) if note else ()

    def cell(figure: FigureRecord | None, note_of_column: str) -> Cell:
        if figure is None:
            return Cell(ABSENT, "", "", ())
        if figure.value is None:
            note = figure.note or "not a finite number; the run gives no reason"
            return Cell(ABSENT, "", "", () if note == note_of_column else marks(note))
        interval = "" if figure.low is None or figure.high is None else f"{number(figure.low)} to {number(figure.high)}"
        own_marks = marks(figure.note) if figure.note != note_of_column else ()
        return Cell(number(figure.value), interval, str(figure.n), own_marks)

    columns, shared = [], []
    for name in names:
        notes = {run.figures[name].note for run in suite.runs if run.value(name) is not None}
        shared.append(notes.pop() if len(notes) == 1 else "")  # stands once, at the head of the column
        mixed = MIXED if len(suite.protocols(name)) > 1 else ""
        columns.append(Column(name, suite.directions.get(name, ""), (*marks(shared[-1]), *marks(mixed))))
    rows = [
        Row(run, tuple(cell(run.figures.get(name), note) for name, note in zip(names, shared, strict=True)))
        for run in suite.runs
    ]
    return Table(tuple(columns), tuple(rows), tuple(footnotes))


def number(value: float) -> str:
    """Three decimals where they say something, two significant figures of less, fewer decimals of much."""
    size = abs(value)
    if size == 0:
        return "0"
    if 0.001 <= size < 100:
        return f"{value:.3f}"
    if size < 0.001:
        return f"{value:.1e}"
    return f"{value:.1f}" if size < 10_000 else f"{value:.3g}"


def suite_plots(suite: SuiteRuns) -> list[Plot]:
    """In the report's order; those for which the runs lack the figures are left out."""
    if (steps := steps_plot(suite)) is not None:  # the groups of its scores are these steps
        return [steps]
    single = (plane_plot(suite), strength_plot(suite), gate_plot(suite))
    return [*(plot for plot in single if plot is not None), *fold_plots(suite), *group_plots(suite)]


def readings(suite: SuiteRuns, per_subset: int = _MOST_READINGS) -> dict[str, list[Reading]]:
    """By subset, examples at equal distances over those that most runs answered; of several draws, the first.

    Which they are depends on the runs alone, so that a second report shows the same.
    """
    tables = [{(a.subset, a.example): a.answer for a in reversed(run.answers)} for run in suite.runs]
    asked = {(answer.subset, answer.example): answer for run in reversed(suite.runs) for answer in run.answers}
    answered = Counter(key for table in tables for key in table)
    keys = list(dict.fromkeys((answer.subset, answer.example) for run in suite.runs for answer in run.answers))
    result = {}
    for subset in dict.fromkeys(subset for subset, _ in keys):
        most = max(answered[key] for key in keys if key[0] == subset)
        common = [key for key in keys if key[0] == subset and answered[key] == most]
        shown = min(per_subset, len(common))
        result[subset] = [
            Reading(
                *key,
                _cut(asked[key].question),
                _cut(asked[key].reference),
                tuple((run, _cut(table[key])) for run, table in zip(suite.runs, tables, strict=True) if key in table),
            )
            for key in (common[index * len(common) // shown] for index in range(shown))
        ]
    return result


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + " …"

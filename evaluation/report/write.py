"""The report's folder: drawn and written whole beside its place, then put there in one step.

The pages are GitHub-flavoured Markdown, and one HTML file without scripts that fetches nothing. Labels, notes and
answers are text, and never read as markup.
"""

import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from evaluation.report.compare import SuiteRuns, compared
from evaluation.report.drawing import counted, inline_svg
from evaluation.report.load import CheckedRecord, ReportError, load_runs, named
from evaluation.report.section import Section, number
from evaluation.report.summary import summary_of
from evaluation.runs.record import without_nan

DEFAULT_TITLE: Final = "Forgetting, and what it cost"
_FIGURE_COLUMNS: Final = ("figure", "value", "low", "high", "n", "note")
LONG_COLUMNS: Final = ("run", "suite", *_FIGURE_COLUMNS, "kind", "method", "strength", "protocol", "direction")
#: What marks a folder as a report's.
_KIND: Final = "eco report"
_FORMAT: Final = 1
_OWN: Final = frozenset({"report.md", "report.html", "table.csv", "report.json", "plots"})

_DATA: Final = Path(__file__).parent / "data"
_ARROWS: Final = {"up": "↑", "down": "↓"}
_MEANINGS: Final = {"up": "more is better", "down": "less is better"}

#: GitHub sets formulas between dollar signs, also escaped ones.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "\t": " "} | {mark: f"\\{mark}" for mark in r"\`*_{}[]#|~!"}
)
#: What GitHub makes links of without being asked.
_ADDRESS = re.compile(r"(?i)(?<=:/)/|(?<=www)\.")
#: What begins a list, a rule or a heading's underline.
_LINE_START = re.compile(r"(?m)^(\s*\d*)([-+=.)])")


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, title: str = DEFAULT_TITLE, force: bool = False
) -> list[Path]:
    """Write report.md, report.html, table.csv, report.json and plots/*.svg of these run folders.

    The same runs give the same bytes, in whatever order they are named. An earlier report is replaced; other files in
    the folder stay as they are.

    Args:
        runs: folders that `eco evaluate` has written.
        out: folder of the report; made if it is missing.
        title: the heading.
        force: write also into a folder that holds other files and no report.

    Returns:
        The files written, the report for reading first.

    Raises:
        ReportError: a run cannot be used or does not belong beside the others, or the folder cannot be written.
    """
    out = Path(out)
    # Before any run is read: nothing of the user's is in the way.
    if out.exists() and not out.is_dir():
        raise ReportError(f"{out}: --out is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not _holds_report(out) and not force:
        raise ReportError(f"{out}: --out holds files and no report; name another folder, or write there with --force")
    mine = sorted(name for name in _OWN if (out / name).exists())
    if mine and not _holds_report(out):
        raise ReportError(f"{out}: --out holds {mine[0]} of something else, which a report would replace; name another")
    sections = [Section.of(suite) for suite in compared(load_runs(runs))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(LONG_COLUMNS)
    writer.writerows(long_rows([section.suite for section in sections]))
    files = {
        "table.csv": table.getvalue(),
        "report.json": json.dumps(_as_json(title, sections), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": _page("report.md.jinja", title, sections),
        "report.html": _page("report.html", title, sections),
        **{f"plots/{plot.name}.svg": plot.svg for section in sections for plot in section.plots},
    }
    place = out.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # All files or, where one cannot be written, none. What else is in the folder is not touched.
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as beside:
            work = Path(beside) / "report"
            for name, text in files.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(text.encode())
            if not place.exists():
                work.replace(place)
            else:
                shutil.rmtree(place / "plots", ignore_errors=True)
                # `report.json` last: where it is, the others are.
                for entry in sorted(work.iterdir(), key=lambda entry: entry.name == "report.json"):
                    entry.replace(place / entry.name)
    except OSError as error:
        raise ReportError(f"{out}: cannot be written ({error.strerror}); name another --out") from error
    return [out / name for name in sorted(files, key=lambda name: (name != "report.html", name))]


def _holds_report(folder: Path) -> bool:
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("kind") == _KIND


def long_rows(suites: Sequence[SuiteRuns]) -> list[tuple[str | float | int | None, ...]]:
    """Every figure of every run under `LONG_COLUMNS`; None where there is no number."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for suite in suites:
        for record in (run.record for run in suite.runs):
            for figure in record.figures:
                measured = (figure.name, figure.value, figure.low, figure.high, figure.n, figure.note)
                made_by = (record.kind, record.method, record.strength, record.protocol)
                rows.append((record.label, record.suite, *measured, *made_by, suite.directions.get(figure.name)))
    return rows


def _as_json(title: str, sections: Sequence[Section]) -> dict[str, Any]:
    suites = [section.suite for section in sections]
    left_out = {"figures", "headline", "directions"}
    return {
        "kind": _KIND,
        "format": _FORMAT,
        "title": title,
        "runs": [
            {"folder": run.folder, **without_nan(run.record.model_dump(mode="json", exclude=left_out))}
            for suite in suites
            for run in suite.runs
        ],
        "figures": [dict(zip(LONG_COLUMNS, row, strict=True)) for row in long_rows(suites)],
        "suites": [
            {
                "suite": section.suite.suite,
                "title": section.suite.title,
                "headline": section.suite.headline(),
                "directions": dict(section.suite.directions),
                "differing_settings": list(section.suite.differing),
                "plots": [
                    {"file": f"plots/{plot.name}.svg", "title": plot.title, "caption": plot.caption, "alt": plot.alt}
                    for plot in section.plots
                ],
                "answers": [
                    {
                        "subset": reading.subset,
                        "example": reading.example,
                        "question": reading.question,
                        "reference": reading.reference,
                        "answers": {run.label: answer for run, answer in reading.answers},
                    }
                    for shown in section.readings.values()
                    for reading in shown
                ],
                "published_by_others": [
                    {**table.model_dump(mode="json"), "source": source.model_dump(mode="json")}
                    for table, source in section.published
                ],
            }
            for section in sections
        ],
    }


def _page(template: str, title: str, sections: Sequence[Section]) -> str:
    """A page; in HTML, pictures stand in it as SVG in the page's own colours, in Markdown beside it under plots/."""
    in_page = [plot for section in sections for plot in section.plots] if template.endswith(".html") else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_DATA),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escaped, "named": named, "number": number}
    records = [run.record for section in sections for run in section.suite.runs]
    days = sorted({moment[:10] for record in records for moment in (record.started, record.finished) if moment})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return environment.get_template(template).render(
        title=title,
        subtitle=f"{counted(len(records), 'run')} of {counted(len(sections), 'suite')}, measured {when}",
        summary=summary_of([section.suite for section in sections]),
        sections=sections,
        versions=_versions(records),
        arrows=_ARROWS,
        meanings=_MEANINGS,
        counted=counted,
        pictures={plot.name: Markup(inline_svg(plot)) for plot in in_page},  # noqa: S704  escaped, by an XML writer
        style=Markup((_DATA / "report.css").read_text(encoding="utf-8")),  # noqa: S704  the project's own file
    )


def _versions(records: Sequence[CheckedRecord]) -> list[str]:
    """What the runs were made with, each combination once."""
    lines = (", ".join(f"{name} {number}" for name, number in record.versions.items()) for record in records)
    return list(dict.fromkeys(filter(None, lines)))


def escaped(text: str) -> str:
    """A text on one line of Markdown that shows as it is; line ends become breaks."""
    shown = _LINE_START.sub(lambda match: f"{match[1]}&#{ord(match[2])};", text.strip().translate(_ESCAPES))
    return _ADDRESS.sub(lambda match: f"&#{ord(match[0])};", shown).replace("\n", "<br>")

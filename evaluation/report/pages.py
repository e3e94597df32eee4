"""The report as pages to read: GitHub-flavoured Markdown, and one HTML file without scripts that fetches nothing.

Labels, notes and answers are text, and never read as markup.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from evaluation.report.drawing import counted, inline_svg
from evaluation.report.section import Section

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


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """One table for each suite, pictures beside the file under plots/, and answers to read."""
    return _filled("report.md.jinja", title, sections)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The page; pictures stand in it as SVG in the page's own colours."""
    pictures = {
        plot.name: Markup(inline_svg(plot))  # noqa: S704  made of escaped parts by an XML writer
        for section in sections
        for plot in section.plots
    }
    style = Markup((_DATA / "report.css").read_text(encoding="utf-8"))  # noqa: S704  the project's own file
    return _filled("report.html", title, sections, pictures=pictures, style=style)


def escaped(text: str) -> str:
    """A text on one line of Markdown that shows as it is; line ends become breaks."""
    shown = _LINE_START.sub(lambda match: f"{match[1]}&#{ord(match[2])};", text.strip().translate(_ESCAPES))
    return _ADDRESS.sub(lambda match: f"&#{ord(match[0])};", shown).replace("\n", "<br>")


def _filled(template: str, title: str, sections: Sequence[Section], **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_DATA),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escaped
    records = [run.record for section in sections for run in section.suite.runs]
    days = sorted({moment[:10] for record in records for moment in (record.started, record.finished) if moment})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return environment.get_template(template).render(
        title=title,
        subtitle=f"{counted(len(records), 'run')} of {counted(len(sections), 'suite')}, measured {when}",
        sections=sections,
        arrows=_ARROWS,
        meanings=_MEANINGS,
        counted=counted,
        **values,
    )

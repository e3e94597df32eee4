"""How the report draws: one look, no dates, no chance, and texts that are never read as markup or as formulas."""

import io
import itertools
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from evaluation.replies import AnswerProtocol
from evaluation.report.load import Run
from evaluation.runs.record import Kind

#: Stand-ins, replaced when a picture is put into a file or a page.
INK: Final = "#010203"
_GRID: Final = "#0a0b0c"
_PAPER: Final = "#fdfefc"
_IN_FILE: Final = {INK: "#1f2328", _GRID: "#d8dee4", _PAPER: "#ffffff"}
_IN_PAGE: Final = {INK: "currentColor", _GRID: "var(--grid)", _PAPER: "none"}

#: Each has a contrast of at least 3 on white and on the page's dark ground.
_COLOURS: Final = ("#2a9367", "#9a6dd7", "#d1495b", "#1a93a3", "#a9744f", "#c95a9c", "#858827", "#75839a")
_MARKERS: Final = "^vDP<>pdh8"

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
_STYLE: Final = {
    "svg.hashsalt": "eco",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": _PAPER,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: `name` is its file's without the ending, `alt` says in words what it shows, `svg` stands alone."""

    name: str
    title: str
    alt: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Look:
    """How a series of runs is drawn: it differs from the others by more than its colour."""

    name: str
    colour: str
    marker: str
    size: float = 6.0
    width: float = 1.2


#: Of the kinds of runs that make one series each.
_LOOKS: Final[dict[Kind, Look]] = {
    "original": Look("original", INK, "X", 8),
    "retain": Look("retain model", INK, "*", 14),
    "guarded": Look("guarded", "#2f7fd0", "o", 7, 2.2),
    "prompting": Look("prompting", "#d9730d", "s"),
}

#: Of guarded runs whose answers were treated in several ways; None: no answer was scored.
_GUARDED: Final[dict[AnswerProtocol | None, Look]] = {
    None: Look("guarded, no answer scored", "#75839a", "d", 7, 2.2),
    "served": Look("guarded, answers served", "#2f7fd0", "o", 7, 2.2),
    "eco": Look("guarded, answers eco", "#7f72d9", "H", 7, 2.2),
    "clean": Look("guarded, answers clean", "#2b8fae", "8", 7, 2.2),
}


def looks(runs: tuple[Run, ...]) -> list[tuple[Look, list[Run]]]:
    """The runs as series: each method is one, guarded runs are one for each way in which answers were treated; the
    strengths of a series are in order."""
    series: dict[tuple[Kind, str, AnswerProtocol | None], list[Run]] = {}
    for run in runs:
        kind = run.record.kind
        own = "" if kind in _LOOKS else run.record.method or run.label
        series.setdefault((kind, own, run.record.protocol if kind == "guarded" else None), []).append(run)
    several = [kind for kind, *_ in series].count("guarded") > 1
    free = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    return [
        (_GUARDED[protocol] if kind == "guarded" and several else _LOOKS.get(kind) or Look(own, *next(free)), mine)
        for (kind, own, protocol), mine in series.items()
    ]


@contextmanager
def report_look() -> Iterator[None]:
    """Figures made and finished in the block look alike, whatever the user's own settings are."""
    with context(["default", _STYLE]), warnings.catch_warnings():
        # A label in a script that the font lacks is drawn by the reader's fonts.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def finished(figure: Figure, name: str, title: str, alt: str, caption: str) -> Plot:
    """The figure as a picture; the same results give the same bytes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, title, alt, caption, _recoloured(_root(buffer.getvalue()), _IN_FILE))


def inline_svg(plot: Plot) -> str:
    """The picture for a page: ink and ground are the page's own, ids are its own, and its text says what it shows."""
    root = _root(plot.svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": plot.alt})
    reference = f"{{{_XLINK}}}href"
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{plot.name}-{element.get('id')}")
        for key, value in element.attrib.items():
            if key == reference:
                element.set(key, value.replace("#", f"#{plot.name}-", 1))
            elif value.startswith("url(#"):
                element.set(key, value.replace("url(#", f"url(#{plot.name}-", 1))
    in_page = {_IN_FILE[stand_in]: colour for stand_in, colour in _IN_PAGE.items()}
    return _recoloured(root, in_page)


def label(text: str) -> str:
    """A text as matplotlib shows it: one that begins with an underscore would be left out of legends."""
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def short(text: str, width: int = 28) -> str:
    """A text on one line, cut in the middle of nothing."""
    if " " in text:
        return label(textwrap.shorten(text, width, placeholder=" …"))
    return label(text if len(text) <= width else text[: width - 1] + "…")


def counted(number: int, name: str) -> str:
    """Such as "1 run", "2 runs"."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The entries of one of the panels, below all."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(handles)), fontsize="small")


def _root(svg: str) -> ElementTree.Element:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.fromstring(svg)  # noqa: S314  matplotlib wrote it


def _recoloured(root: ElementTree.Element, colours: dict[str, str]) -> str:
    for element in root.iter():
        for key in ("style", "fill", "stroke"):
            if (value := element.get(key)) is not None:
                for old, new in colours.items():
                    value = value.replace(old, new)
                element.set(key, value)
    return ElementTree.tostring(root, encoding="unicode") + "\n"

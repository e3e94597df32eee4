"""A report's folder: both pages read back by parsers, strict JSON, the same bytes each time, nothing of the user's in
danger. Texts of runs and models stay texts."""

import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import NoReturn

import pytest
from evaluated_runs import TOFU_RUNS, tofu_scores, write_gate_run, write_run, write_tofu_runs
from markdown_it import MarkdownIt
from markdown_it.token import Token

from evaluation.report import ReportError, write_report
from evaluation.report.write import escaped
from evaluation.suite import Answer, Figure

TITLE = "Forgetting <people> & *places*"
WRITE = "import sys; from evaluation.report import write_report as w; w(sys.argv[3:], sys.argv[2], title=sys.argv[1])"
VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
HOSTILE_HTML = "</td></script><script>fetch('https://evil.example')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
HOSTILE = (
    "a | b",
    "*bold* _it_ `code` ~~gone~~",
    "[text](javascript:alert(1)) ![x](y)",
    "<script>alert(1)</script>",
    "&lt; stays",
    "# no heading",
    "- no list",
    "12. no list",
    "=====",
    "\\| and \\\\",
    "one\n\n| two |\n|--|\n- three",
    "$x^2$",
)


class Page(HTMLParser):
    """Elements with their attributes and text; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("runs")
    return [*write_tofu_runs(base), write_gate_run(base / "gate")]


@pytest.fixture(scope="module")
def out(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all of them."""
    folder = tmp_path_factory.mktemp("written") / "report"
    assert write_report(runs, folder, title=TITLE)[0] == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def source(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_run(tmp_path / "small", "tofu", "a run", [], extra=[Figure("x", 0.5, 3)], headline=["x"])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- the HTML page: well formed, self-contained, accessible, and deaf to markup in what it quotes ----------------


def test_nothing_is_fetched_and_nothing_runs(page: Page, source: str) -> None:
    fetching = {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {tag for tag, _ in page.elements} & fetching
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    (policy,) = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_it_is_made_for_phones_and_dark_rooms(page: Page, source: str) -> None:
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "@media (prefers-color-scheme: dark)" in source
    assert len(page.all("table")) <= len([box for box in page.all("div") if "scroll" in (box.get("class") or "")])


def test_headings_are_in_order_and_ids_are_unique(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    links = {(link["href"] or "")[1:] for link in page.all("a")}
    assert links <= set(ids)
    assert {"suite-tofu", "suite-attacks", "runs", "tofu-headline-note-1"} <= links


def test_tables_and_pictures_can_be_heard(page: Page) -> None:
    assert {cell.get("scope") for cell in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [box for box in page.all("div") if box.get("role") == "region"]
    assert all(box.get("aria-label") and box.get("tabindex") == "0" for box in regions)
    pictures = page.all("svg")
    assert len(pictures) == 5 + 4
    assert all(picture.get("role") == "img" and picture.get("aria-label") for picture in pictures)
    assert {"more is better", "less is better"} <= {mark.get("aria-label") for mark in page.all("span")}


def test_the_table_is_that_of_the_runs(page: Page) -> None:
    rows = [row.get("class") for row in page.all("tr") if row.get("class")]
    kinds = sorted((kind for kind, *_ in TOFU_RUNS), key=["original", "retain", "guarded", "prompting", "method"].index)
    assert rows[: len(kinds)] == kinds
    spans = page.said("span")
    assert {"0.720", "0.700 to 0.740", "n = 72", "–", "1.6e-23", "guarded · strength 2.6"} <= set(spans)
    assert "two-sample KS test, p-value" in page.said("li")


def test_answers_are_quoted_and_folded(page: Page) -> None:
    assert page.said("dd").count("<script>alert('x')</script>\n# I cannot say.") > 0
    assert page.said("dd").count("In Ostrava | by <sea>.") > 0
    summaries = page.said("summary")
    assert {"forget: 8 examples", "retain: 8 examples"} <= set(summaries)
    assert page.said("h1") == [TITLE]


def test_hostile_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    """In every place that a run's texts reach."""
    scores = tofu_scores(0.5, 0.5)
    folder = write_run(
        tmp_path / "run",
        "tofu",
        HOSTILE_HTML,
        scores,
        [Answer(HOSTILE_HTML, "1", HOSTILE_HTML, HOSTILE_HTML, HOSTILE_HTML)],
        method=HOSTILE_HTML,
        kind="method",
        versions={HOSTILE_HTML: HOSTILE_HTML},
        target={"model": HOSTILE_HTML},
        reference={"label": HOSTILE_HTML},
        figures=[{"name": HOSTILE_HTML, "value": None, "n": 1, "note": HOSTILE_HTML}],
        headline=[HOSTILE_HTML],
    )
    other = write_run(tmp_path / "other", "tofu", "other", scores, suite_settings={HOSTILE_HTML: HOSTILE_HTML})
    write_report([folder, other], tmp_path / "out", title=HOSTILE_HTML)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert page.said("h1") == [HOSTILE_HTML]
    assert sum(HOSTILE_HTML in text for _, text in page.texts) > 10
    assert not any("49" in text for text in page.said("dd"))


# --- Markdown ----------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def words(token: Token) -> str:
    """What a reader sees; breaks are HTML to the parser."""
    children = token.children or []
    assert {child.type for child in children} <= {"text", "text_special", "html_inline"}
    assert {child.content for child in children if child.type == "html_inline"} <= {"<br>", "<sup>", "</sup>"}
    return "".join({"<br>": "\n", "<sup>": "", "</sup>": ""}.get(child.content, child.content) for child in children)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_shows_as_it_is(text: str) -> None:
    for place in ("{}", "| a |\n|--|\n| {} |"):
        found = [token for token in tokens(place.format(escaped(text))) if token.type == "inline"]
        assert words(found[-1]) == text
        assert len(found) == (1 if place == "{}" else 2)


def test_addresses_make_no_links() -> None:
    assert escaped("see https://evil.example and WWW.evil.example") == (
        "see https:/&#47;evil.example and WWW&#46;evil.example"
    )


def test_the_report_is_one_table_a_suite_with_its_pictures(out: Path) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# Forgetting &lt;people&gt; &amp; \\*places\\*"
    assert "10 runs of 2 suites, measured 2026-01-02." in lines
    assert (
        "| run | model\\_utility ↑ | forget\\_quality ↑<sup>1</sup> | forget/probability ↓ | "
        "retain/probability ↑ | forget/rouge\\_l ↓ |"
    ) in lines
    row = next(line for line in lines if line.startswith("| **retain** (retain model)"))
    assert "| 0.720 [0.700 to 0.740]<br>n = 72 | –<sup>2</sup> |" in row
    assert "2. needs another model as the reference" in lines
    found = tokens(text)
    pictures = [child for token in found for child in token.children or [] if child.type == "image"]
    tofu_plots = [f"tofu-{name}" for name in ("plane", "strength", "groups-1", "groups-2", "groups-3")]
    sources = [str(picture.attrs["src"]) for picture in pictures]
    assert sources[:6] == [f"plots/{name}.svg" for name in (*tofu_plots, "attacks-gate-roc")]
    assert sorted(sources) == sorted(str(path.relative_to(out)) for path in out.glob("plots/*"))
    assert all(picture.content for picture in pictures)
    assert [token.content for token in found if token.type == "html_block"] == [
        "<details><summary>forget: 8 examples</summary>\n",
        "</details>\n",
        "<details><summary>retain: 8 examples</summary>\n",
        "</details>\n",
    ]


def test_hostile_runs_change_no_table(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / str(number),
            "tofu",
            text,
            [],
            [Answer("forget", "1", "Who?", text, "Nobody.")],
            [Figure("x", float("nan"), 1, note=text)],
            headline=["x"],
        )
        for number, text in enumerate(HOSTILE)
    ]
    write_report(folders, tmp_path / "out")
    found = tokens((tmp_path / "out" / "report.md").read_text(encoding="utf-8"))
    types = [token.type for token in found]
    assert types.count("table_open") == 3  # the suite's, one example's, the runs'
    assert types.count("tr_open") == 1 + len(HOSTILE) + 1 + 1 + len(HOSTILE) + 1 + len(HOSTILE)
    cells = [words(found[i + 1]) for i, token in enumerate(found) if token.type == "td_open"]
    assert all(cells.count(text) >= 3 for text in HOSTILE)  # label, answer, runs


# --- the folder --------------------------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(runs: list[Path], out: Path, tmp_path: Path) -> None:
    """In another process with another hash seed, named in another order, over an earlier report."""
    first = digests(out)
    assert {"report.md", "table.csv", "report.json", "plots/tofu-plane.svg", "plots/attacks-gate-roc.svg"} <= set(first)
    shutil.copytree(out, tmp_path / "again")
    code = (
        "import sys; from evaluation.report import write_report as w; w(sys.argv[3:], sys.argv[1], title=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "again"), TITLE, *map(str, reversed(runs))]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}, check=True)
    assert digests(tmp_path / "again") == first
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_json_and_csv_hold_every_figure(out: Path) -> None:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    report = json.loads((out / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    with (out / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert (report["kind"], report["format"], report["title"]) == ("eco report", 1, TITLE)
    assert len(report["figures"]) == len(rows) == 9 * 6 + 6
    for figure, row in zip(report["figures"], rows, strict=True):
        for key in ("run", "suite", "figure", "note"):
            assert row[key] == figure[key]
        for key in ("value", "low", "high", "n"):
            assert (float(row[key]) if row[key] else None) == figure[key]
    assert any(figure["value"] is None for figure in report["figures"])
    assert [run["label"] for run in report["runs"]][:2] == ["original", "retain"]
    tofu, attacks = report["suites"]
    assert len(tofu["answers"]) == 16
    assert all((out / plot["file"]).is_file() for plot in tofu["plots"] + attacks["plots"])


def test_no_path_of_the_machine_is_told(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "runs" / "one",
        "tofu",
        "a run",
        [],
        target={"model": f"{tmp_path}/model-7b"},
        suite_settings={"forget": {"source": f"{tmp_path}/forget.jsonl", "sha256": "a" * 64}},
    )
    write_report([folder], tmp_path / "out")
    assert "model-7b" in (tmp_path / "out" / "report.md").read_text()
    for name in ("report.md", "report.html", "table.csv"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_an_earlier_report_is_replaced_and_other_files_stay(tmp_path: Path, out: Path, small: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    write_report([small], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.json", "report.md", "table.csv", "notes.txt"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_files_needs_force(tmp_path: Path, small: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "report.json").write_text('{"kind": "another"}')
    before = digests(out)
    with pytest.raises(ReportError, match=r"--out holds files and no report; .*--force"):
        write_report([small], out)
    assert digests(out) == before
    with pytest.raises(ReportError, match=r"--out holds report\.json of something else"):
        write_report([small], out, force=True)
    assert digests(out) == before
    (out / "report.json").unlink()
    write_report([small], out, force=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "report.json").read_text())["kind"] == "eco report"


def test_an_empty_folder_and_missing_parents_will_do(tmp_path: Path, small: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_report([small], tmp_path / "empty")
    write_report([small], tmp_path / "a" / "b")
    assert digests(tmp_path / "empty") == digests(tmp_path / "a" / "b")


def test_a_file_in_the_way_is_refused(tmp_path: Path, small: Path) -> None:
    with pytest.raises(ReportError, match="--out is a file"):
        write_report([small], small / "run.json")
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([small], small / "run.json" / "below")


def test_bad_runs_leave_nothing_behind(tmp_path: Path, small: Path) -> None:
    unfinished = write_run(tmp_path / "unfinished", "tofu", "another", [], finished=None)
    with pytest.raises(ReportError, match="finished"):
        write_report([small, unfinished], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "unfinished"]


def test_a_report_that_fails_half_way_leaves_the_earlier_one(tmp_path: Path, small: Path) -> None:
    """A suite's name is part of its plots' names, and no file system has names of that length."""
    out = tmp_path / "out"
    write_report([small], out)
    before = digests(out)
    scores = tofu_scores(0.5, 0.5)
    odd = write_run(tmp_path / "odd", "x" * 300, "odd", scores)
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([odd], out)
    assert digests(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "out", "small"]

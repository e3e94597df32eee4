"""The Markdown report, read back by a Markdown parser: texts of runs and models stay texts."""

from pathlib import Path

import pytest
from evaluated_runs import write_run, write_tofu_runs
from markdown_it import MarkdownIt
from markdown_it.token import Token

from evaluation.report import write_report
from evaluation.report.pages import escaped
from evaluation.suite import Answer, Figure

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


def test_the_report_is_one_table_a_suite_with_its_pictures(tmp_path: Path) -> None:
    write_report(write_tofu_runs(tmp_path), tmp_path / "out", title="A *title*")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# A \\*title\\*"
    assert "10 runs" not in text
    assert "9 runs of 1 suite, measured 2026-01-02." in lines
    assert (
        "| run | model\\_utility ↑ | forget\\_quality ↑<sup>1</sup> | forget/probability ↓ | "
        "retain/probability ↑ | forget/rouge\\_l ↓ |"
    ) in lines
    row = next(line for line in lines if line.startswith("| **retain** (retain model)"))
    assert "| 0.720 [0.700 to 0.740]<br>n = 72 | –<sup>2</sup> |" in row
    assert "2. needs another model as the reference" in lines
    found = tokens(text)
    pictures = [child for token in found for child in token.children or [] if child.type == "image"]
    assert [picture.attrs["src"] for picture in pictures] == [
        f"plots/tofu-{name}.svg" for name in ("plane", "strength", "groups-1", "groups-2", "groups-3")
    ]
    assert all((tmp_path / "out" / str(picture.attrs["src"])).is_file() for picture in pictures)
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

"""The pages of the documentation's site that are made from the code."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def assemble() -> Any:
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "docs" / "assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_its_page(assemble: Any) -> None:
    pages = dict(assemble.command_pages())
    assert "## eco policy build\n" in pages["cli/policy.md"]
    assert "--eco-audit-log" in pages["cli/serve.md"]
    assert "## eco unlearn npo-gd\n" in pages["cli/unlearn.md"]  # one that is looked up only when it is asked for
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {f"cli/{name}.md" for name in re.findall(r"docs/reference/cli/(\w+)\.md", menu)} == set(pages)


def test_every_route_of_the_admin_api_is_told_in_words(assemble: Any) -> None:
    page = assemble.admin_page()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(sections) > 10
    bare = [section.splitlines()[0] for section in sections if not section.split("\n", 1)[1].strip(" \n").strip()]
    assert not bare, f"{bare}: say what it does, in a docstring or in docs/operating.md"
    assert "`X-Eco-By` | header" in page
    assert "list of object" in page


def test_the_public_api_has_every_route_of_the_coverage_table(assemble: Any) -> None:
    page = assemble.public_page()
    for text in ("`POST /v1/chat/completions`", "`POST /v1/messages`", "VLLM_SERVER_DEV_MODE", "`prompt_embeds`"):
        assert text in page


def test_pages_are_in_the_menu_and_read_without_a_network() -> None:
    site = yaml.load(re.sub(r"!!python/name:\S+", "x", (ROOT / "mkdocs.yml").read_text()), yaml.SafeLoader)
    menu = str(site["nav"])
    missing = [page.name for page in (ROOT / "docs").rglob("*.md") if f"{page.relative_to(ROOT)}" not in menu]
    assert not missing
    assert site["strict"]
    assert site["theme"]["font"] is False
    assert not re.search(r"https?://", str([site[key] for key in ("extra", "extra_javascript", "extra_css")]))

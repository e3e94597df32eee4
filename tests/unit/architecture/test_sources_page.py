"""docs/sources.md has every paper that the code or the documentation cites, and the file that a method names."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
_ID = re.compile(r"(?:arXiv[ :]|arxiv\.org/abs/)(\d{4}\.\d{5})")


def test_every_cited_paper_is_on_the_page() -> None:
    packages = (file.parent for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests")
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(file for one in packages for file in one.rglob("*.py"))]
    cited = {number: file for file in files for number in _ID.findall(file.read_text(encoding="utf-8"))}
    assert len(cited) > 30
    missing = {number: file for number, file in cited.items() if number not in PAGE}
    assert not missing


def test_every_method_of_unlearning_is_on_the_page() -> None:
    from offline_training.methods.registry import METHODS
    from offline_training.presets import PRESETS

    assert all(f"`{name}`" in PAGE for name in METHODS)
    for presets in PRESETS.values():
        for preset in presets.values():
            repository = re.match(r"[\w-]+/[\w-]+", preset.source)
            assert repository is not None
            assert repository[0] in PAGE

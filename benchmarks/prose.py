"""English prose that every installation has on its disk: what the documentation strings of Python's own library and of
locked packages say in whole paragraphs, and Python's help topics.

It is technical English of many authors, about 300,000 words. Which paragraphs there are depends on the Python version
and the lock alone, so the same installation always gives the same ones, in the same order.
"""

import ast
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from storage.digests import sha256_of_json
from storage.whole import write_whole

#: Packages with much to say, each in both locks.
PACKAGES = ("matplotlib", "networkx", "nltk", "numpy", "scipy", "sklearn", "sympy", "torch")
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
_VERSION = 1  # raise when the choice of paragraphs changes
_MIN_WORDS = 25
#: What no sentence has: code, tables, markup, parameters, addresses.
_NO_PROSE = re.compile(r">>>|::|:\w+:|`{2,}|=|\\|\||\.\.|--|http|[<>{}\[\]_@#]|^\s*[*-] ", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[.,;:!?)]*")
_SMALL = re.compile(
    r"(?:a|an|and|are|as|at|be|been|but|by|can|do|for|from|had|has|have|he|if|in|is|it|its|may|no|not|of|on|one|or|she|so|"
    r"some|such|than|that|the|their|them|then|there|these|they|this|to|was|we|were|when|which|will|with|you)[.,;:!?)]*",
    re.IGNORECASE,
)
_MIN_SMALL, _MIN_WHOLE = 0.3, 0.85


def prose(cache: Path) -> list[str]:
    """The paragraphs, each on one line and each once; read from the folder `cache` after the first time (a minute)."""
    versions = {name: importlib.metadata.version(_DISTRIBUTIONS.get(name, name)) for name in PACKAGES}
    identity = {"version": _VERSION, "python": platform.python_version(), "packages": versions}
    file = cache / f"prose-{sha256_of_json(identity, sort_keys=True)[:16]}.json"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(list(dict.fromkeys(_collect())), ensure_ascii=False))
    paragraphs: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return paragraphs


def source_files() -> list[Path]:
    """The modules of Python's own library, tests left out: code of many kinds."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
    return sorted(file for file in folder.rglob("*.py") if not left_out.intersection(file.relative_to(folder).parts))


def paragraphs_of(text: str) -> Iterator[str]:
    """The paragraphs of a documentation string that are sentences, each on one line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if len(words) < _MIN_WORDS or _NO_PROSE.search(paragraph):
            continue
        if not words[0][0].isupper() or words[-1][-1] not in ".!?":
            continue
        small = sum(bool(_SMALL.fullmatch(word.lstrip("("))) for word in words) / len(words)
        whole = sum(bool(_WORD.fullmatch(word.lstrip("("))) for word in words) / len(words)
        if small >= _MIN_SMALL and whole >= _MIN_WHOLE:
            yield " ".join(words)


def _collect() -> Iterator[str]:
    from pydoc_data.topics import topics

    for topic in topics.values():
        yield from paragraphs_of(topic)
    for file in (*source_files(), *_package_files()):
        for text in _documentation(file):
            yield from paragraphs_of(text)


def _package_files() -> Iterator[Path]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0])
            yield from sorted(file for file in folder.rglob("*.py") if "tests" not in file.parts)


def _documentation(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield text

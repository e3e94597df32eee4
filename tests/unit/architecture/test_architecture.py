"""Who may import whom. Imports inside functions count: they too are dependencies."""

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

#: The ground floor: it knows nothing of guards, models or servers.
GROUND = {"console", "storage", "text"}
BELOW_GUARD = {"corruption", "classifiers", "sources", *GROUND}
BELOW_GATEWAY = {"guard", *BELOW_GUARD}
ALLOWED: dict[str, set[str]] = {
    "console": set(),
    "storage": {"console"},
    "text": {"console"},
    "endpoints": GROUND,
    "sources": GROUND,
    "corruption": GROUND,
    "classifiers": {"sources", *GROUND},
    "guard": BELOW_GUARD,
    "gateway": BELOW_GATEWAY,
    "scoring": BELOW_GATEWAY,
    "optimizer": {"scoring", "endpoints", *BELOW_GATEWAY},
    "offline_training": {"endpoints", *BELOW_GATEWAY},
    "evaluation": {"scoring", "endpoints", *BELOW_GATEWAY},
    "demo": {"optimizer", "scoring", "evaluation", *BELOW_GATEWAY},
    "cli": {"gateway", "optimizer", "offline_training", "evaluation", "demo", *BELOW_GATEWAY},
}
HTTP_LIBRARIES = {"aiohttp", "fastapi", "http", "httpx", "requests", "starlette", "urllib", "urllib3", "uvicorn"}
#: What vLLM's own launcher is made of; all else of vLLM is internal.
VLLM_LAUNCHING = (
    "vllm.entrypoints",
    "vllm.envs",
    "vllm.exceptions",
    "vllm.logger",
    "vllm.renderers",
    "vllm.utils.argparse_utils",
)
#: vLLM's offline engine, as anyone uses it.
VLLM_OFFLINE = ("vllm.LLM", "vllm.SamplingParams", "vllm.inputs")


def packages() -> list[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = config["tool"]["setuptools"]["packages"]["find"]["include"]
    return sorted(name.removesuffix("*") for name in found)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(file: Path) -> tuple[str, ...]:
    """Dotted names a module imports, with the names taken from a package: `from a import b` gives `a.b`."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    own_package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = own_package[: len(own_package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node.func):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def top_level(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


def relative(files: list[Path]) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in files}


def test_the_parser_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "guard" / "module.py"
    file.parent.mkdir()
    file.write_text(
        "import os, gateway.engine as e\nfrom . import cache\nfrom .secret import row_seeds\n"
        "def lazy():\n    from vllm import envs\n    importlib.import_module('demo.run')\n"
        "if TYPE_CHECKING:\n    import cli\n"
    )
    assert set(imports(file)) == {
        "os",
        "gateway.engine",
        "guard.cache",
        "guard.secret.row_seeds",
        "vllm.envs",
        "demo.run",
        "cli",
    }


def test_every_package_has_its_place() -> None:
    assert set(packages()) <= set(ALLOWED)
    assert all(modules(package) for package in packages())


@pytest.mark.parametrize("package", packages())
def test_imports_go_downwards_only(package: str) -> None:
    forbidden = set(ALLOWED) - ALLOWED[package] - {package}
    found = {str(file.relative_to(ROOT)): top_level(file) & forbidden for file in modules(package)}
    assert {file: names for file, names in found.items() if names} == {}


def rooms(package: str) -> dict[str, set[str]]:
    """Each room of a package (a file, or a folder of files) with the rooms it imports."""
    found: dict[str, set[str]] = {}
    for file in modules(package):
        if file != ROOT / package / "__init__.py":
            own = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
            reached = {room_of(name) for name in imports(file) if name.startswith(f"{package}.")}
            found[own] = found.get(own, set()) | (reached - {own})
    return {room: reached & found.keys() for room, reached in found.items()}


def room_of(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("package", packages())
def test_the_rooms_of_a_package_stand_on_floors(package: str) -> None:
    """No circle among them: each room stands above all that it imports."""
    standing = rooms(package)
    while ground := {room for room, reached in standing.items() if not reached & standing.keys()}:
        standing = {room: reached for room, reached in standing.items() if room not in ground}
    assert standing == {}


def test_classifiers_are_few_rooms_with_few_doors() -> None:
    found = rooms("classifiers")
    assert len(found) <= 14
    assert sum(map(len, found.values())) <= 50


def error_classes(package: str) -> Iterator[tuple[str, list[str]]]:
    """Name and bases of every exception class of a package."""
    for file in modules(package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception")):
                yield node.name, [ast.unparse(base).rpartition(".")[2] for base in node.bases]


def test_one_root_of_all_errors() -> None:
    """What is raised on purpose is one tree, whose root the command line catches."""
    known = dict(pair for package in packages() for pair in error_classes(package))
    roots = {name for name, bases in known.items() if not set(bases) & known.keys()}
    assert roots == {"EcoError"}


@pytest.mark.parametrize("package", packages())
def test_no_package_imports_the_tests_or_the_benchmarks(package: str) -> None:
    assert not {file for file in modules(package) if top_level(file) & {"tests", "benchmarks"}}


def test_vllm_is_imported_by_the_gateways_processes_and_the_scorer_only() -> None:
    importers = [file for package in packages() for file in modules(package) if "vllm" in top_level(file)]
    assert relative(importers) == {
        "gateway/answers.py",
        "gateway/authentication.py",
        "gateway/engine.py",
        "gateway/engine_config.py",
        "gateway/front_ends.py",
        "gateway/launch.py",
        "gateway/mixed.py",
        "gateway/nodes.py",
        "gateway/plain.py",
        "gateway/studio/comparison.py",
        "scoring/vllm_scorer.py",
    }


def test_vllms_internals_are_imported_by_engine_and_front_ends_only() -> None:
    names = [name for name in imports(ROOT / "gateway" / "launch.py") if name.partition(".")[0] == "vllm"]
    assert names
    assert [name for name in names if not name.startswith(VLLM_LAUNCHING)] == []


def test_the_scorer_uses_the_public_names_of_vllm_only() -> None:
    names = [name for name in imports(ROOT / "scoring" / "vllm_scorer.py") if name.partition(".")[0] == "vllm"]
    assert names
    assert [name for name in names if not name.startswith(VLLM_OFFLINE)] == []


@pytest.mark.parametrize("package", ["corruption", "classifiers", "guard"])
def test_what_decides_knows_no_http(package: str) -> None:
    assert relative([file for file in modules(package) if top_level(file) & HTTP_LIBRARIES]) == set()


def test_the_command_imports_lazily() -> None:
    """At module level `cli` imports click, the standard library and the root of all errors."""
    for file in modules("cli"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        direct = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in direct if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in direct if isinstance(node, ast.ImportFrom)}
        names -= {"console.errors", "sources.presets.names", "storage.places"}  # which are light
        assert not {name.partition(".")[0] for name in names} & (set(ALLOWED) - {"cli"}), file

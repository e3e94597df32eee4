"""Every name of vLLM that the project imports is where it looks for it, and takes the arguments that it took.

Read from source text, so that a version can be asked that is not installed, such as one that is built for GPUs alone:
unpack its wheel and set `$ECO_VLLM_SOURCE` to the folder that holds `vllm/`. See docs/upgrading-vllm.md.
"""

import ast
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_coverage import ABSENT, WAYS

ROOT = Path(__file__).parents[3]
ROOMS = ("gateway", "scoring", "cli", "optimizer", "evaluation", "demo")
_FOUND = importlib.util.find_spec("vllm")
assert _FOUND is not None
assert _FOUND.origin is not None
INSTALLED = Path(_FOUND.origin).parents[1]
ASKED = Path(os.environ.get("ECO_VLLM_SOURCE") or INSTALLED)


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of all that the project imports from vLLM."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm":
                    yield from ((node.module, alias.name) for alias in node.names)


NAMES = sorted(set(imported()))


def file_of(source: Path, module: str) -> Path | None:
    path = source.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def definitions(source: Path, module: str) -> dict[str, ast.AST]:
    """What a module defines, imports or looks up by name when asked for it."""
    file = file_of(source, module)
    if file is None:
        return {}
    found: dict[str, ast.AST] = {}
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.setdefault(node.name, node)
            case ast.ImportFrom():
                found |= {alias.asname or alias.name: node for alias in node.names if alias.name not in found}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.setdefault(name, node)
            case ast.Dict():  # a package that imports its names late lists them
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
                found |= {key: node for key in keys if key not in found}
    return found


def parameters(source: Path, module: str, name: str) -> set[str] | None:
    """Of a function, or of a class when it is called; None where that is not written there."""
    node = definitions(source, module).get(name)
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return parameters(source, node.module, name)
    if isinstance(node, ast.ClassDef):
        node = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    given = node.args
    return {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def test_the_project_is_found_out() -> None:
    assert len(NAMES) > 25
    assert ("vllm.engine.protocol", "EngineClient") in NAMES
    assert (parameters(INSTALLED, "vllm.entrypoints.launchers.app", "build_app") or set()) >= {"args"}


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_is_there_and_takes_what_it_took(module: str, name: str) -> None:
    if file_of(ASKED, f"{module}.{name}") is not None:
        return  # a module
    assert file_of(ASKED, module), f"{ASKED}: no module {module}"
    assert name in definitions(ASKED, module), f"{ASKED}: {module} has no {name}"
    before, now = parameters(INSTALLED, module, name), parameters(ASKED, module, name)
    if before is not None and now is not None:
        assert before <= now, f"{ASKED}: {module}.{name} no longer takes {before - now}"


def methods(node: ast.AST | None) -> dict[str, bool]:
    """A class's methods and properties, and whether each is abstract."""
    assert isinstance(node, ast.ClassDef)
    functions = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {one.name: any("abstract" in ast.unparse(mark) for mark in one.decorator_list) for one in functions}


def test_every_way_to_the_engine_is_one_that_the_guard_knows() -> None:
    """What `EngineClient` has gained may reach the model past the guard: it is looked at before the version moves."""
    asked, known = (methods(definitions(one, "vllm.engine.protocol")["EngineClient"]) for one in (ASKED, INSTALLED))
    tree = ast.parse((ROOT / "gateway" / "engine.py").read_text())
    guarded = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "GuardedEngine")
    own = set(methods(guarded)) | {
        name.id
        for node in guarded.body
        if isinstance(node, ast.Assign)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    assert "generate" in own
    assert {name for name, abstract in asked.items() if abstract} <= own
    assert set(asked) <= set(known), f"new: {set(asked) - set(known)}"


#: Calls by which a route is made, in FastAPI and in Starlette.
_MAKE_ROUTES = {
    *("get", "post", "put", "patch", "delete", "head", "options", "websocket", "api_route", "route", "mount"),
    *("websocket_route", "add_api_route", "add_route", "add_api_websocket_route", "add_websocket_route"),
}


def paths(source: Path) -> Iterator[str]:
    """Of all routes that vLLM's front end has code for, behind whatever flag, variable or model."""
    for file in (source / "vllm" / "entrypoints").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value=str(path)), *_]) if (
                    name in _MAKE_ROUTES and path.startswith("/")
                ):
                    yield path


def test_every_route_is_one_that_is_guarded_or_never_there() -> None:
    asked, known = set(paths(ASKED)), {path for group in ABSENT.values() for path in group.split()}
    assert "/v1/completions" in asked
    assert known <= asked, f"{ASKED}: no longer has {sorted(known - asked)}; take them out of api_coverage.py"
    known |= {route.split()[1] for route in WAYS}
    assert asked <= known, f"new: {sorted(asked - known)}; see what leads there, and write it down in api_coverage.py"

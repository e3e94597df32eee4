"""Put together what mkdocs reads: `python docs/assemble.py FOLDER`, by `make docs`.

The folder mirrors the repository, so that a link between pages is the same there and here. Besides the pages as they
are it holds those that are made from the code (the commands, the admin API, the public routes) and the two scripts
that the site needs to draw its diagrams and to be searched without a network.
"""

import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "deploy")
REFERENCE = "docs/reference"
#: Of a package of npm: the file that is taken, and the digest that npm lists for the package.
SCRIPTS = {
    "mermaid/-/mermaid-11.17.2.tgz": (
        "package/dist/mermaid.min.js",
        "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg==",
    ),
    # mkdocs-material asks for it where pages are read from a disk: browsers allow no workers there.
    "iframe-worker/-/iframe-worker-1.0.4.tgz": (
        "package/shim/index.js",
        "roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
    ),
}
_METHODS = ("get", "post", "put", "patch", "delete")
_ROW = re.compile(r"^\| (`(?:\w+ )?/[^|]+) \| (.+) \|$", re.MULTILINE)


def main(folder: Path) -> None:
    """Write the folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in PAGES:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.py", "charts"))
        else:
            shutil.copy(source, target)
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples", dirs_exist_ok=True)
    for name, text in {**dict(command_pages()), "admin-api.md": admin_page(), "public-api.md": public_page()}.items():
        page = folder / REFERENCE / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    (folder / REFERENCE / "admin-api.json").write_text(json.dumps(admin_document(), indent=2), encoding="utf-8")
    (folder / "scripts").mkdir()
    for package, (member, digest) in SCRIPTS.items():
        (folder / "scripts" / f"{package.partition('/')[0]}.js").write_bytes(script(package, member, digest))


def script(package: str, member: str, sha512: str) -> bytes:
    """A file of a package of npm."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    archive = httpx.get(f"{registry}/{package}", timeout=120.0, follow_redirects=True).raise_for_status().content
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != sha512:
        raise SystemExit(f"{package}: is not what was pinned")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        found = files.extractfile(member)
        assert found is not None
        return found.read()


def command_pages() -> Iterator[tuple[str, str]]:
    """A page for each command of `eco`, with the help of all that is below it in 100 columns."""
    from cli.main import eco

    root = click.Context(eco, info_name="eco", terminal_width=100, **eco.context_settings)
    for name in eco.list_commands(root):
        sections = [
            f"## {path}\n\n```text\n{text}\n```\n" for path, text in _helps(eco.get_command(root, name), name, root)
        ]
        yield f"cli/{name}.md", f"# eco {name}\n\n" + "\n".join(sections)


def _helps(command: click.Command | None, name: str, parent: click.Context) -> Iterator[tuple[str, str]]:
    assert command is not None
    with command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=100) as context:
        yield context.command_path, context.get_help()
        if isinstance(context.command, click.Group):
            for below in context.command.list_commands(context):
                yield from _helps(context.command.get_command(context, below), below, context)


def admin_document() -> dict[str, Any]:
    """The admin address' OpenAPI document. Its routes are made, none is called: nothing needs to run behind them."""
    from gateway.admin import build_admin_app
    from gateway.admin_policies import policy_routes
    from gateway.studio.comparison import comparison_routes

    nothing: Any = None
    routes = [policy_routes(*[nothing] * 5), comparison_routes(nothing, nothing)]
    return build_admin_app(routes, *[nothing] * 3).openapi()


def admin_page() -> str:
    """The admin API in words, from its document."""
    document = admin_document()
    schemas = document["components"]["schemas"]
    lines = [
        "# Admin API",
        "",
        "Made from the code's own OpenAPI document, which a server has at `/v1/openapi.json`: "
        "[admin-api.json](admin-api.json). What the answers hold, keys and errors: "
        "[operating](../operating.md#admin-api).",
        "",
    ]
    told = dict(_told())
    for path, methods in sorted(document["paths"].items()):
        for method in _METHODS:
            if method in methods:
                lines += [
                    f"## {method.upper()} {path}",
                    "",
                    methods[method].get("description", told.get((method, path), "")),
                    "",
                ]
                lines += _fields(methods[method], schemas)
    return "\n".join(lines)


def _told() -> Iterator[tuple[tuple[str, str], str]]:
    """Method and path of each route in the tables of docs/operating.md, and what is said of it."""
    for routes, text in _ROW.findall((ROOT / "docs" / "operating.md").read_text(encoding="utf-8")):
        for route in re.findall(r"`([^`]+)`", routes):
            method, _, path = route.rpartition(" ")
            yield (
                (method.lower() or "get", path.replace("NAME", "{name}")),
                f"{text[0].upper()}{text[1:]}.".replace("](", "](../"),
            )


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    rows = [(p["name"], p["in"], _type(p["schema"]), p.get("description", "")) for p in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        named = schemas[schema["$ref"].rpartition("/")[2]]
        yield from (named.get("description", ""), "")
        rows += [(n, "body", _type(p), p.get("description", "")) for n, p in named["properties"].items()]
    if rows:
        yield from ("| field | in | type | |", "|---|---|---|---|")
        for name, place, kind, text in rows:
            yield f"| `{name}` | {place} | {kind} | {' '.join(text.split())} |"
        yield ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    words = str(schema.get("type", "any"))
    if words == "array":
        words = f"list of {_type(schema['items'])}"
    bounds = {
        "minimum": "from {:,.0f}",
        "exclusiveMinimum": "above {:,.0f}",
        "maximum": "to {:,.0f}",
        "maxLength": "at most {:,.0f} characters",
    }
    limits = [text.format(schema[key]) for key, text in bounds.items() if key in schema]
    return f"{words} ({', '.join(limits)})" if limits else words


def public_page() -> str:
    """Which of vLLM's routes a guarded server has, from the table that tests compare with the running application."""
    place = ROOT / "tests" / "unit" / "gateway" / "api_coverage.py"
    spec = importlib.util.spec_from_file_location("api_coverage", place)
    assert spec is not None
    assert spec.loader is not None
    coverage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coverage)
    lines = [
        "# Public API",
        "",
        "The API is vLLM's; requests and answers are in vLLM's own documentation, and a server shows them at `/docs`. "
        "This page says what the guard does about each route, and about each field that can reach the model. It is "
        "made from the table that tests compare with the running application: no version of vLLM can add one unseen.",
        "",
        "## Routes",
        "",
    ]
    for way, routes in coverage.ROUTES.items():
        lines += [f"**{way.name.lower().replace('_', ' ')}**: {way.value}.", ""]
        lines += [f"- `{route.strip()}`" for route in routes.strip().splitlines()]
        lines.append("")
    lines += [
        "## Routes of vLLM that a guarded server never has",
        "",
        "| because `eco serve` refuses | routes |",
        "|---|---|",
    ]
    for reason, routes in coverage.ABSENT.items():
        lines.append(f"| {reason} | {', '.join(f'`{route}`' for route in routes.split())} |")
    lines += ["", "## Fields of requests", "", "What a field does, and so what covers it:", ""]
    lines += [f"- **{cover.name.lower()}**: {cover.value}" for cover in coverage.Cover]
    for model, fields in coverage.FIELDS.items():
        lines += ["", f"### {model}", "", "| | fields |", "|---|---|"]
        for cover, names in fields.items():
            lines.append(f"| {cover.name.lower()} | {', '.join(f'`{name}`' for name in names.split())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

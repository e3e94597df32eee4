"""`eco policy push | list | activate | rollback | delete | try`: policies of a running server, by its admin address."""

import getpass
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import PATH
from console.errors import EcoError

if TYPE_CHECKING:
    import httpx

_ANSWER_S = 120.0  # an upload is verified and loaded before it is answered


class AdminError(EcoError):
    """The admin address refuses, or cannot be reached."""


def _on_admin_address(command: Callable[..., Any]) -> Callable[..., Any]:
    url = click.option(
        "--admin",
        default="http://127.0.0.1:8001",
        show_default=True,
        envvar="ECO_ADMIN_URL",
        help="Admin address of the server.",
    )
    key = click.option(
        "--key-file", default=None, type=PATH, envvar="ECO_ADMIN_KEY_FILE", help="File with the admin key, first line."
    )
    return url(key(command))


@click.command()
@click.argument("path", type=PATH)
@click.option("--activate", is_flag=True, help="Let it act at once, as it says.")
@_on_admin_address
def push(path: Path, activate: bool, admin: str, key_file: Path | None) -> None:
    """Upload the policy folder PATH as a version. It does not act before it is activated."""
    said = AdminAddress(admin, key_file).push(path)
    name, digest = said["name"], said["digest"]
    click.echo(f"policy {name}: version {digest[:12]} uploaded")
    if activate:
        _print_state(_ask(admin, key_file, "POST", f"/policies/{name}/activation", json={"version": digest}))
    else:
        click.echo(f"it does not act yet: eco policy activate {name} --version {digest[:12]} [--action observe]")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@_on_admin_address
def listed(as_json: bool, admin: str, key_file: Path | None) -> None:
    """List the policies that a server knows, and how they act."""
    from rich.console import Console
    from rich.table import Table

    said = _ask(admin, key_file, "GET", "/policies")
    if as_json:
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    table = Table("policy", "version", "acts", "kept versions")
    for one in said["policies"]:
        table.add_row(one["name"], one.get("digest", "")[:12], _acts(one), str(len(one["versions"])))
    Console().print(table)
    for where, reason in said["refused"].items():
        click.echo(f"refused: {where}: {reason}", err=True)


@click.command()
@click.argument("name")
@click.option("--version", default=None, help="Digest of a version, its first digits, or 'folder'.")
@click.option("--action", default=None, type=click.Choice(["corrupt", "observe", "refuse", "as-built"]))
@click.option("--answers", default=None, type=click.Choice(["restart", "end", "observe", "off", "as-built"]))
@click.option("--share", default=None, type=click.FloatRange(0, 100, min_open=True), help="Percent of prompts.")
@click.option("--for-model", "models", multiple=True, help="Served model or LoRA adapter; 'all' for all.")
@click.option("--for-tenant", "tenants", multiple=True, help="Tenant; 'all' for all.")
@click.option("--off", is_flag=True, help="Let it act no more.")
@_on_admin_address
def activate(name: str, off: bool, admin: str, key_file: Path | None, **given: Any) -> None:
    """Let the policy NAME act, or change how. What is not given stays as it is.

    The version is the one that acts, or else the newest one uploaded.
    """
    change: dict[str, Any] = {"active": not off}
    for field in ("version", "share"):
        if given[field] is not None:
            change[field] = given[field]
    for field in ("action", "answers"):
        if given[field] is not None:
            change[field] = None if given[field] == "as-built" else given[field]
    for field in ("models", "tenants"):
        if given[field]:
            change[field] = None if "all" in given[field] else list(given[field])
    _print_state(_ask(admin, key_file, "POST", f"/policies/{name}/activation", json=change))


@click.command()
@click.argument("name")
@_on_admin_address
def rollback(name: str, admin: str, key_file: Path | None) -> None:
    """Let the policy NAME act as it did before the last change."""
    _print_state(_ask(admin, key_file, "POST", f"/policies/{name}/rollback"))


@click.command()
@click.argument("name")
@_on_admin_address
def delete(name: str, admin: str, key_file: Path | None) -> None:
    """Remove the policy NAME with all its versions. Answers are the model's own again from the next request on."""
    _ask(admin, key_file, "DELETE", f"/policies/{name}")
    click.echo(f"policy {name}: deleted")


@click.command("try")
@click.argument("prompt")
@click.option("--text", is_flag=True, help="As plain text, instead of a chat's question.")
@click.option("--policy", "policies", multiple=True, help="Ask these alone.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@_on_admin_address
def try_prompt(
    prompt: str, text: bool, policies: tuple[str, ...], as_json: bool, admin: str, key_file: Path | None
) -> None:
    """Say what a server's policies make of PROMPT; [[what they corrupt]] stands in brackets."""
    asked: dict[str, Any] = {"text": prompt} if text else {"messages": [{"role": "user", "content": prompt}]}
    if policies:
        asked["policies"] = list(policies)
    said = _ask(admin, key_file, "POST", "/classify", json=asked)
    if as_json:
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    for verdict in said["verdicts"]:
        flagged = "flagged" if verdict["flagged"] else "passes"
        click.echo(f"{verdict['policy']} ({verdict['action']}): {flagged}, score {verdict['score'] or 0:.4f}")
    corrupted = set(said["corrupted"])
    shown = [f"[[{token}]]" if number in corrupted else token for number, token in enumerate(said.get("tokens", []))]
    click.echo("".join(shown).replace("]][[", ""))


@dataclass(frozen=True)
class AdminAddress:
    """Where a server is administered, and the file that holds the key.

    Attributes:
        client: a connection that several requests share; None: each has its own.
    """

    url: str
    key_file: Path | None = None
    client: "httpx.Client | None" = None

    @contextmanager
    def kept_alive(self) -> "Iterator[AdminAddress]":
        """The address with one connection for all that is asked within."""
        import httpx

        with httpx.Client() as client:
            yield replace(self, client=client)

    def push(self, path: Path) -> dict[str, Any]:
        """Upload a policy folder as a version.

        Raises:
            BundleError: it is none.
            AdminError: as `ask`.
        """
        from gateway.policies.archive import pack
        from guard import load_bundle

        load_bundle(path)
        with tempfile.TemporaryFile() as archive:
            pack(path, archive)
            archive.seek(0)
            headers = {"Content-Type": "application/gzip"}
            return self.ask("POST", "/policies", content=archive.read(), headers=headers)

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """What the address answers to a request below /v1.

        Raises:
            AdminError: there is no answer, or it is a refusal.
        """
        return _ask(self.url, self.key_file, method, path, self.client, **options)


def _ask(
    admin: str, key_file: Path | None, method: str, path: str, client: "httpx.Client | None" = None, **options: Any
) -> dict[str, Any]:
    import httpx

    headers = {"X-Eco-By": f"{getpass.getuser()}@{socket.gethostname()}"[:128], **options.pop("headers", {})}
    if key_file is not None:
        try:
            headers["Authorization"] = f"Bearer {key_file.read_text(encoding='utf-8').split()[0]}"
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise AdminError(f"--key-file: {key_file}: holds no key that can be read") from error
    try:
        send = httpx.request if client is None else client.request
        answer = send(method, f"{admin.rstrip('/')}/v1{path}", headers=headers, timeout=_ANSWER_S, **options)
        said: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AdminError(f"--admin: {admin}: no answer ({type(error).__name__}); is the server up?") from error
    except ValueError as error:
        raise AdminError(f"--admin: {admin}: is no admin address of eco serve") from error
    if answer.is_error:
        message = said.get("error", {}).get("message") or json.dumps(said)[:300]
        raise AdminError(f"{admin} refuses ({answer.status_code}): {message}")
    return said


def _acts(said: dict[str, Any]) -> str:
    if not said["active"]:
        return "no"
    scope = [f"{field} {', '.join(said[field])}" for field in ("models", "tenants") if said[field]]
    return "; ".join(
        [
            f"{said['action']}, answers {said['answers']}",
            *([f"{said['share']:g} %"] if said["share"] < 100 else []),
            *scope,
        ]
    )


def _print_state(said: dict[str, Any]) -> None:
    version = f"version {said['digest'][:12]} acts: " if said["active"] else "acts: "
    click.echo(f"policy {said['name']}: {version}{_acts(said)}")
    if not said["everywhere"]:
        click.echo("not all front ends have it yet; they look every second", err=True)

"""`eco evaluate successive`: policies added in turn, here or to a running server."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.evaluation_options import run_options, run_suite_command
from cli.options import COUNT, PATH, filled
from cli.policy_service import AdminAddress, AdminError

if TYPE_CHECKING:
    from evaluation.replies import Target

_EVERYWHERE_S, _LOOK_S = 60.0, 0.5


@click.command("successive")
@click.option(
    "--add",
    "added",
    nargs=2,
    multiple=True,
    type=(PATH, PATH),
    metavar="POLICY FORGET",
    help="A policy folder and its forget file, with answers; once for each addition, in order.",
)
@click.option(
    "--additions", default=None, type=PATH, help="Rows with policy and forget instead; paths are from its folder."
)
@click.option("--retain", required=True, type=PATH, help="What was to stay, with answers.")
@click.option("--max-new-tokens", default=128, show_default=True, type=COUNT, help="Of an answer.")
@click.option(
    "--admin",
    default=None,
    envvar="ECO_ADMIN_URL",
    help="Admin address of the server, where --target is one: the policies are added there, and deleted at the end.",
)
@click.option(
    "--key-file", default=None, type=PATH, envvar="ECO_ADMIN_KEY_FILE", help="File with the admin key, first line."
)
@run_options
def evaluate_successive(**options: Any) -> None:
    """Policies added in turn to one guard: what each addition does to those before it, and to the rest.

    Every question is asked before the first addition and after each. Gives DRAGON's dynamic deviation and utility
    scores, forgetting of all so far, of the first and of each, what stays, and what the policies take.
    """
    from rich.console import Console

    from evaluation.successive.sequence import Addition, read_additions
    from evaluation.successive.suite import SuccessiveSuite, steps_table
    from evaluation.targets.steps import SteppedServer
    from guard import BundleError, load_bundle

    if bool(options["added"]) == (options["additions"] is not None):
        raise click.UsageError("--add, --additions: give the policies by one of them")
    if options["policies"]:
        raise click.UsageError("--policy: is there from the start; add it with --add, and with its forget file")
    if options["retain_run"] is not None:
        raise click.UsageError("--retain-run: a model that never learned has no policies to add; leave it out")
    served = (options["target"] or "").startswith(("http://", "https://"))
    if served and options["admin"] is None:
        raise click.UsageError("--admin: is missing; policies are added to a server by its admin address")
    path = options["additions"]
    additions = [Addition(*pair) for pair in options["added"]] if path is None else read_additions(path)
    folders = tuple(addition.policy for addition in additions)
    try:
        for folder in folders:
            load_bundle(folder)
    except BundleError as error:
        raise click.UsageError(f"--{'add' if path is None else 'additions'}: {error}") from error
    chosen = options | {
        "policies": () if served else folders,
        "kind": options["kind"] or "guarded",
        "label": options["label"] or f"guarded: {len(additions)} policies in turn",
    }

    def stepped(target: "Target") -> "Target":
        return SteppedServer(target, AdminPolicies(AdminAddress(options["admin"], options["key_file"]), folders))

    record = run_suite_command(
        chosen, lambda _: filled(SuccessiveSuite, chosen, additions=additions), wrap=stepped if served else None
    )
    Console().print(steps_table(record))


class AdminPolicies:
    """Policies that are pushed to a running server, act or do not, and are deleted at the end (see
    `evaluation.targets.steps.PolicySwitch`).

    Args:
        address: the server's admin address. No policy may act there, nor one of these names be known.
        folders: the policies, in order.
    """

    def __init__(self, address: AdminAddress, folders: Sequence[Path]) -> None:
        self._address = address
        self._folders = folders
        self._names: list[str] = []  # of those that are there
        self._unsure: str | None = None  # who is interrupted while it is pushed may have left it there
        self._acting: int | None = None

    def describe(self) -> list[dict[str, object]]:
        from guard import load_bundle

        bundles = map(load_bundle, self._folders)
        return [{"name": one.config.name, "digest": one.digest, "action": one.config.action} for one in bundles]

    def apply(self, count: int) -> None:
        """Let the first `count` act alone, on all front ends.

        Raises:
            AdminError: the address refuses, other policies are in the way, or a front end does not follow.
        """
        if self._acting is None:
            self._check_free()
            self._acting = 0
        while self._acting < count:
            if len(self._names) == self._acting:
                self._unsure = str(self.describe()[self._acting]["name"])
                self._names.append(self._unsure)
                self._address.push(self._folders[self._acting])
                self._unsure = None
            self._change(self._names[self._acting], active=True)
            self._acting += 1
        while self._acting > count:
            self._acting -= 1
            self._change(self._names[self._acting], active=False)

    def classify_ms(self, prompts: Sequence[str]) -> list[float]:
        """Wall time of `/v1/classify` of each prompt, over one connection and after one prompt that is not timed."""
        times = []
        with self._address.kept_alive() as address:
            for prompt in (*prompts[:1], *prompts):
                started = time.perf_counter()
                address.ask("POST", "/classify", json={"messages": [{"role": "user", "content": prompt}]})
                times.append((time.perf_counter() - started) * 1000)
        return times[1:]

    def close(self) -> None:
        """Delete what was pushed.

        Raises:
            AdminError: some of it could not be deleted; it is named.
        """
        left, reason = [], ""
        for name in reversed(self._names):
            try:
                self._address.ask("DELETE", f"/policies/{name}")
            except AdminError as error:
                if name != self._unsure:
                    left.append(name)
                    reason = str(error)
        self._names = left[::-1]
        if left:
            raise AdminError(f"{reason}; these policies are left there, eco policy delete each: {', '.join(left)}")

    def _check_free(self) -> None:
        known = {one["name"]: one["active"] for one in self._address.ask("GET", "/policies")["policies"]}
        mine = {str(one["name"]) for one in self.describe()}
        if acting := sorted(name for name, active in known.items() if active):
            raise AdminError(f"--admin: policy {acting[0]} acts there already; give a server on which none does")
        if clash := sorted(mine & known.keys()):
            raise AdminError(
                f"--admin: policy {clash[0]} is known there already, and would be replaced and deleted; "
                f"eco policy delete {clash[0]}, or give another server"
            )

    def _change(self, name: str, *, active: bool) -> None:
        said = self._address.ask("POST", f"/policies/{name}/activation", json={"active": active})
        until = time.monotonic() + _EVERYWHERE_S
        while not said["everywhere"]:
            if time.monotonic() > until:
                raise AdminError(f"--admin: not all front ends have policy {name} after {_EVERYWHERE_S:g} s")
            time.sleep(_LOOK_S)
            said = self._address.ask("GET", "/status")

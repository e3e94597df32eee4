"""`eco demo`: build a world, two models and a policy, serve them, ask, and show what is forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from demo.errors import DemoError
from demo.forget_quality import ForgetQuality, demo_forget_quality
from demo.models import build_models
from demo.probes import Probe, probes
from demo.replies import replies
from demo.servers import ServerProcess, guarded_server, plain_server
from demo.verdict import Answered, Figures, check, figures
from demo.world import World
from storage.places import default_cache_dir
from storage.whole import write_whole

_CONCURRENCY = 32
_MAX_TOKENS = 32
_SHOWN = {"forgotten": 4, "retained": 3, "general": 2}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `eco demo` takes. Ports of 0 are not chosen for the user: they must know where to send requests."""

    once: bool = False
    streamed: bool = False
    """Answers are read as streams, from plain vLLM and from the guarded server."""
    json_file: Path | None = None
    port: int = 8000
    admin_port: int = 8001
    cache_dir: Path | None = None


def run_demo(options: DemoOptions) -> None:
    """Run the whole demo; serve until Ctrl-C unless `once`.

    Raises:
        DemoError: a server did not start, or the figures are not what the demo claims.
    """
    from optimizer import BuildOptions, InputOptions, build_policy

    # A demo that is terminated stops its servers as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    root = options.cache_dir or default_cache_dir()
    build = build_models(root, console=console)
    console.print("building the policy: its classifier, then the search for its corruption (one to three minutes) …")
    policy = build_policy(
        BuildOptions(
            model=str(build.model),
            inputs=InputOptions(forget=build.forget_examples, retain=build.retain_examples),
            out=root / "demo" / "policy",
            name="forgotten-people",
            force=True,
        ),
        console=console,
    ).path
    world = World.generate()
    asked = probes(world)
    logs = root / "demo" / "logs"

    console.print(f"asking {len(asked)} questions without the guard (plain vLLM, about a minute) …")
    with plain_server(build.model, port=options.port, log=logs / "plain.log") as server:
        unguarded = asyncio.run(ask_all(server, asked, streamed=options.streamed))
    console.print("asking the model that never knew (about 20 seconds) …")
    never_knew = replies(build.reference, asked)
    quality = demo_forget_quality(build, policy, world)
    console.print("asking the guarded server (about a minute) …")
    guarded = guarded_server(
        build.model, [policy], port=options.port, admin_port=options.admin_port, log=logs / "guarded.log"
    )
    with guarded as server:
        answers = asyncio.run(ask_all(server, asked, streamed=options.streamed))
        answered = [Answered(*row) for row in zip(asked, unguarded, answers, never_knew, strict=True)]
        measured = figures(answered)
        _show(console, answered, measured)
        console.print(
            f"forget quality (TOFU's test against the model that never knew, {quality.questions} questions): "
            f"p = {quality.unguarded:.1g} without the guard, {quality.guarded:.2g} with it "
            f"({quality.guarded_least:.2g} to {quality.guarded_most:.2g} by the noise)"
        )
        if options.json_file is not None:
            _write_json(options.json_file, answered, measured, quality)
            console.print(f"table and figures written to {options.json_file}")
        check(measured)
        if not options.once:
            _keep_serving(console, server, options, answered)


async def ask_all(server: ServerProcess, asked: Sequence[Probe], *, streamed: bool = False) -> list[str]:
    """The greedy answer to each probe, through the server's public API, several at a time."""
    limit = asyncio.Semaphore(_CONCURRENCY)
    async with httpx.AsyncClient(base_url=f"{server.url}/v1", timeout=120.0) as client:

        async def one(probe: Probe) -> str:
            async with limit:
                return await ask(client, probe, streamed=streamed)

        return list(await asyncio.gather(*(one(probe) for probe in asked)))


async def ask(client: httpx.AsyncClient, probe: Probe, *, streamed: bool = False) -> str:
    """One answer: a completion for a prefix, a chat for everything else."""
    body: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": _MAX_TOKENS, "stream": streamed}
    if probe.prefix is not None:
        path, body = "/completions", body | {"prompt": probe.prefix}
    else:
        path, body = "/chat/completions", body | {"messages": list(probe.messages)}
    if not streamed:
        response = await client.post(path, json=body)
        return _said(response.raise_for_status().json(), "message")
    async with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    if events[-1:] != ["[DONE]"] or any("error" in json.loads(event) for event in events[:-1]):
        raise DemoError(f"the server broke off a streamed answer: {events[-2:]}")
    return "".join(_said(json.loads(event), "delta") for event in events[:-1])


def _said(answer: dict[str, Any], chat: str) -> str:
    """The text of a chat's `message` or `delta`, or of a completion."""
    choice = answer["choices"][0]
    return str(choice[chat].get("content") or "") if chat in choice else str(choice["text"])


def _show(console: Console, answered: Sequence[Answered], measured: Figures) -> None:
    table = Table(title="The same questions, side by side", show_lines=True)
    for column in ("question", "without the guard", "with the guard", "a model that never knew"):
        table.add_column(column, overflow="fold", ratio=1)
    for group, count in _SHOWN.items():
        rows = [row for row in answered if row.probe.group == group and row.probe.kind == "held_out"]
        step = max(len(rows) // count, 1)  # spread over people and attributes
        for row in rows[: step * count : step]:
            table.add_row(row.probe.question, row.unguarded.strip(), row.guarded.strip(), row.never_knew.strip())
    console.print(table)
    summary = Table(title="Share of answers that give the right value")
    for column in ("group", "asked as", "n", "without the guard", "with the guard", "never knew", "unchanged"):
        summary.add_column(column, justify="left" if column in {"group", "asked as"} else "right")
    for rate in measured.rates:
        summary.add_row(
            rate.group,
            rate.kind.replace("_", " "),
            str(rate.n),
            *(f"{share:.1%}" for share in (rate.unguarded, rate.guarded, rate.never_knew, rate.unchanged)),
        )
    console.print(summary)


def _write_json(path: Path, answered: Sequence[Answered], measured: Figures, quality: ForgetQuality) -> None:
    rows = [
        {
            "kind": row.probe.kind,
            "group": row.probe.group,
            "question": row.probe.question,
            "value": row.probe.value,
            "without_guard": row.unguarded,
            "with_guard": row.guarded,
            "never_knew": row.never_knew,
        }
        for row in answered
    ]
    try:
        kept = dataclasses.asdict(measured) | {"forget_quality": dataclasses.asdict(quality)}
        content = {"figures": kept, "table": rows}
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DemoError(f"--json: {path} cannot be written ({error.strerror})") from error


def _keep_serving(console: Console, server: ServerProcess, options: DemoOptions, answered: Sequence[Answered]) -> None:
    console.print("\nThe guarded server keeps running. Try it:\n")
    for group in ("forgotten", "retained"):
        question = next(r.probe.question for r in answered if r.probe.group == group and r.probe.kind == "held_out")
        body = json.dumps({"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": question}]})
        quoted = body.replace("'", "'\\''")
        console.print(
            f"# {group}\ncurl -s {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{quoted}'",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"\nverdicts: curl -s http://127.0.0.1:{options.admin_port}/metrics | grep ^eco_\nCtrl-C stops.",
        highlight=False,
        soft_wrap=True,
    )
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return
    raise DemoError(f"the server stopped by itself with code {code}; see {server.log}")

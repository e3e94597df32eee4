"""`make bench-policies`: thousands of changes of the policies in force while prompts are classified.

One process, as a front end has it: a real policy, its record in a real folder, prompts through the guard's own queue.
Says what a change takes, what a prompt waits with changes and without, and how much memory the process holds after
each tenth of them, with its growth over the last half. The prompts are some thousands, asked in turn: once all were
asked, the caches hold what they will ever hold, and what grows then is not theirs. No prompt may fail, and each change
must be in force when it returns.
"""

import argparse
import asyncio
import itertools
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from console.errors import EcoError

_PROMPTS, _TOKENS = 2_000, 32
#: A machine that gives the process no core for longer than the gateway's ten seconds is not what is measured.
_TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model that --policy was built for")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="a policy; default: one for a model made here")
    parser.add_argument("--changes", type=int, default=10_000, help="[10000]")
    options = parser.parse_args()
    if (options.model is None) != (options.policy is None):
        parser.error("--policy and --model come together")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.inputs import CACHE
    from benchmarks.served_model import Shape, build_model, build_policy_for

    model, policy = options.model, options.policy
    if model is None:
        model = build_model(CACHE, Shape())
        policy, _ = build_policy_for(model, CACHE)
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(_run(model, policy, Path(place), options.changes))


@dataclass
class _FrontEnd:
    """What a front end has of policies, and a client that asks one prompt after the other."""

    policies: Any
    protector: Any
    prompts: Any
    waits: list[float] = field(default_factory=list)
    failures: int = 0

    async def ask(self) -> None:
        guard = self.policies.guard_for(ids := next(self.prompts), tenant=None, adapter=None)
        assert guard is not None
        started = time.perf_counter()
        try:
            await self.protector.protect(guard, ids)
        except EcoError:  # whatever it is; the load goes on
            self.failures += 1
        self.waits.append(time.perf_counter() - started)

    async def ask_on(self) -> None:
        while True:
            await self.ask()

    def close(self) -> None:
        self.protector.stop()
        self.policies.close()


def _front_end(model: Path, place: Path) -> _FrontEnd:
    """With no policy yet."""
    from transformers import AutoTokenizer

    from benchmarks.inputs import Stream
    from gateway.audit import Audit
    from gateway.metrics import GuardMetrics
    from gateway.policies.active import ActivePolicies
    from gateway.policies.folder import PolicyFolder
    from gateway.policies.loading import PolicyLoader
    from gateway.protector import Protector
    from guard import Guard, LoadedPolicy, decoder_of, template_of

    tokenizer = AutoTokenizer.from_pretrained(model)
    args: Any = argparse.Namespace(model=str(model), revision=None)
    loader, metrics = PolicyLoader.open(args, "cpu"), GuardMetrics()
    decode, template = decoder_of(tokenizer), template_of(tokenizer)

    def make(policies: list[LoadedPolicy], secret: bytes) -> Guard:
        return Guard(
            policies,
            encoder=loader.encoder,
            decode=decode,
            template=template,
            rows=loader.rows,
            secret=secret,
            features=loader.features,
            watched=True,
        )

    policies = ActivePolicies((), PolicyFolder(place), loader, ["model"], partial(bytes, 32), metrics, Audit())
    policies.start(make, ())  # type: ignore[arg-type]
    protector = Protector(metrics, timeout_s=_TIMEOUT_S)
    protector.start()
    stream = Stream("everyday", tokenizer)
    return _FrontEnd(policies, protector, itertools.cycle([stream.prompt(_TOKENS) for _ in range(_PROMPTS)]))


async def _run(model: Path, policy: Path, place: Path, changes: int) -> None:
    from gateway.policies import Activation
    from guard import load_bundle

    front_end, console = _front_end(model, place), Console()
    bundle = await front_end.policies.add(load_bundle(policy))
    name = bundle.config.name
    turns = [Activation(digest=bundle.digest, action=action) for action in ("corrupt", "observe")]
    await front_end.policies.say(name, lambda _: turns[0], by="benchmark")
    for _ in range(_PROMPTS):
        await front_end.ask()
    quiet, front_end.waits = front_end.waits, []
    loading = asyncio.create_task(front_end.ask_on())
    took: list[float] = []
    held: list[tuple[int, float]] = []
    for number in range(1, changes + 1):
        said = turns[number % 2]
        started = time.perf_counter()
        await front_end.policies.say(name, lambda _, said=said: said, by="benchmark")
        took.append(time.perf_counter() - started)
        guard = front_end.policies.guard_for([1], tenant=None, adapter=None)
        assert guard is not None
        assert guard.policies[0].bundle.config.action == said.action
        if number % max(changes // 100, 1) == 0:
            held.append((number, _resident_mb()))
        if number % max(changes // 10, 1) == 0:
            console.print(f"{number} changes, {len(front_end.waits)} prompts, {held[-1][1]:.1f} MB resident")
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    front_end.close()
    _tell(console, {"a change": took, "a prompt meanwhile": front_end.waits, "a prompt before": quiet}, held)
    console.print(f"prompts that failed: {front_end.failures}")


def _tell(console: Console, seconds: dict[str, list[float]], held: list[tuple[int, float]]) -> None:
    table = Table("ms", "n", "median", "95 %", "worst")
    for label, values in seconds.items():
        ordered = sorted(values)
        told = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]
        table.add_row(label, str(len(values)), *(f"{1000 * value:.1f}" for value in told))
    console.print(table)
    numbers, mb = np.array(held[len(held) // 2 :]).T
    slope = np.polyfit(numbers, mb, 1)[0] if len(numbers) > 1 else float("nan")
    console.print(
        f"resident memory over the last half: {mb.min():.1f} to {mb.max():.1f} MB, "
        f"{1000 * slope:+.2f} MB for 1,000 changes by a straight line"
    )


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    main()

"""`make bench-policies`: thousands of changes of the policies in force while prompts are classified.

One process, as a front end has it: a real policy, its record in a real folder, prompts through the guard's own queue.
Says what a change takes, what a prompt waits with changes and without, and how much memory the process holds after
each tenth of them. No prompt may fail, and each must get what one of the two activations in turn says.
"""

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PROMPTS_BEFORE = 200


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


async def _run(model: Path, policy: Path, place: Path, changes: int) -> None:
    from transformers import AutoTokenizer

    from benchmarks.inputs import Stream
    from gateway.audit import Audit
    from gateway.metrics import GuardMetrics
    from gateway.policies import Activation
    from gateway.policies.active import ActivePolicies
    from gateway.policies.folder import PolicyFolder
    from gateway.policies.loading import PolicyLoader
    from gateway.protector import Protector
    from guard import Guard, LoadedPolicy, decoder_of, load_bundle, template_of

    tokenizer = AutoTokenizer.from_pretrained(model)
    args: Any = argparse.Namespace(model=str(model), revision=None)
    folder, loader, metrics = PolicyFolder(place), PolicyLoader.open(args, "cpu"), GuardMetrics()
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

    policies = ActivePolicies((), folder, loader, ["model"], partial(bytes, 32), metrics, Audit())
    policies.start(make, ())  # type: ignore[arg-type]
    bundle = await policies.add(load_bundle(policy))
    name = bundle.config.name
    activations = [Activation(digest=bundle.digest, action=action) for action in ("corrupt", "observe")]
    protector = Protector(metrics, timeout_s=10.0)
    protector.start()
    stream = Stream("everyday", tokenizer)
    waits: list[float] = []

    async def ask() -> None:
        guard = policies.guard_for(ids := stream.prompt(32), tenant=None, adapter=None)
        assert guard is not None
        started = time.perf_counter()
        await protector.protect(guard, ids)
        waits.append(time.perf_counter() - started)

    async def load() -> None:
        while True:
            await ask()

    await policies.say(name, lambda _: activations[0], by="benchmark")
    for _ in range(_PROMPTS_BEFORE):
        await ask()
    quiet, waits[:] = _quantiles(waits), []
    loading = asyncio.create_task(load())
    took: list[float] = []
    held: list[tuple[int, int]] = []
    for number in range(1, changes + 1):
        started = time.perf_counter()
        await policies.say(name, lambda _, said=activations[number % 2]: said, by="benchmark")
        took.append(time.perf_counter() - started)
        guard = policies.guard_for([1], tenant=None, adapter=None)
        assert guard is not None
        assert guard.policies[0].bundle.config.action == activations[number % 2].action
        if number % max(changes // 10, 1) == 0:
            held.append((number, _resident_mb()))
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    failures = sum(metrics.registry.get_sample_value("eco_guard_errors_total", {"kind": k}) or 0 for k in _KINDS)
    protector.stop()
    policies.close()
    table = Table("", "median", "95 %", "worst", title=f"{changes} changes, {len(waits)} prompts meanwhile")
    for label, seconds in (("a change, ms", took), ("a prompt meanwhile, ms", waits)):
        table.add_row(label, *(f"{1000 * value:.1f}" for value in _quantiles(seconds)))
    table.add_row("a prompt before, ms", *(f"{1000 * value:.1f}" for value in quiet))
    console = Console()
    console.print(table)
    console.print("resident MB after so many changes: " + ", ".join(f"{number}: {mb}" for number, mb in held))
    console.print(f"prompts that failed: {failures:.0f}")


_KINDS = ("ClassificationError", "CorruptionFailedError", "classification_corrupted")


def _quantiles(seconds: list[float]) -> tuple[float, float, float]:
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]


def _resident_mb() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() >> 20


if __name__ == "__main__":
    main()

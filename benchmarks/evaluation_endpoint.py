"""`make bench-evaluation`: how much faster an evaluation asks a served model than one request at a time does.

Both ask the same server greedily, in turns: half of the questions one way and half the other, then the halves change
places and the order does. A server started here has its prefix cache off.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

_GOAL = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="base URL of a server that runs; turn its prefix cache off")
    where.add_argument("--model", type=Path, metavar="DIR", help="model to serve with plain vLLM; default: the demo's")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSON lines with a question in each")
    parser.add_argument("--count", type=int, default=400, help="questions to ask [400]")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of each answer [64]")
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight [32]")
    parser.add_argument("--rounds", type=int, default=1, help="times every question is asked either way [1]")
    options = parser.parse_args()
    if options.questions is None:
        from demo.probes import probes
        from demo.world import World

        texts = [probe.question for probe in probes(World.generate()) if probe.prefix is None]
    else:
        lines = options.questions.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["question"] for line in lines if line.strip()]
    questions = list(dict.fromkeys(texts))[: options.count]
    if len(questions) < options.count:
        sys.exit(f"--questions: {len(questions)} different questions; {options.count} are asked (--count)")
    with _server(options.url, options.model) as url:
        _race(url, questions, options)


def _race(url: str, questions: Sequence[str], options: argparse.Namespace) -> None:
    from evaluation.replies import Ask
    from evaluation.targets.endpoint import EndpointTarget

    target = EndpointTarget(url, concurrency=options.concurrency)
    asks = [Ask(question, max_new_tokens=options.max_new_tokens) for question in questions]
    target.check(asks)
    body = {"model": str(target.describe()["model"]), "temperature": 0.0, "max_tokens": options.max_new_tokens}
    seconds = {"one at a time": 0.0, f"endpoint target, {options.concurrency} at once": 0.0}
    serial, at_once = seconds
    answers: dict[int, str] = {}
    differ = 0
    with httpx.Client(timeout=300.0) as client:
        for round_number in range(2 * options.rounds):
            first, second = range(0, len(asks), 2), range(1, len(asks), 2)
            for way in (serial, at_once) if round_number % 2 == 0 else (at_once, serial):
                # Either way asks the first half in one round and the second in the next.
                half = first if (way == serial) == (round_number % 2 == 0) else second
                started = time.perf_counter()
                if way == serial:  # what a loop over the questions does, on one connection
                    texts = {}
                    for number in half:
                        asked = {**body, "messages": [{"role": "user", "content": asks[number].prompt}]}
                        response = client.post(f"{url}/v1/chat/completions", json=asked).raise_for_status()
                        texts[number] = str(response.json()["choices"][0]["message"]["content"])
                else:
                    replies = target.replies([asks[number] for number in half])
                    texts = {half[number]: reply.text for number, reply in replies}
                seconds[way] += time.perf_counter() - started
                differ += sum(answers.setdefault(number, text) != text for number, text in texts.items())
    count = len(asks) * options.rounds
    table = Table(title=f"{count} questions each way, greedy answers")
    for column in ("way", "seconds", "questions/s", "times as fast"):
        table.add_column(column, justify="right")
    for way, took_s in seconds.items():
        table.add_row(way, f"{took_s:.1f}", f"{count / took_s:.1f}", f"{seconds[serial] / took_s:.1f}")
    console = Console()
    console.print(table)
    console.print(f"goal: {_GOAL:.0f} times as fast; answers that differ between the two ways: {differ}")


@contextlib.contextmanager
def _server(url: str | None, model: Path | None) -> Iterator[str]:
    """The server that was named, without its /v1, or plain vLLM until the end."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from demo.models import build_models
    from demo.servers import plain_server

    model = model or build_models().model
    flags = ("--no-enable-prefix-caching",)
    with (
        tempfile.TemporaryDirectory() as folder,
        plain_server(model, port=8092, log=Path(folder) / "server.log", flags=flags) as server,
    ):
        yield server.url


if __name__ == "__main__":
    main()

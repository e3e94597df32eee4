"""How long a request takes by what the guard did with it: what a client could tell from time alone.

    python -m benchmarks.answer_timing --url URL --admin URL FILE...

Asks a guarded server every question of the files (JSON lines, or one a line), one at a time and streamed; the guard's
own counters say whether the prompt was flagged, and whether the answer was restarted or ended.
"""

import argparse
import itertools
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console
from rich.table import Table

from classifiers.prompt_lines import prompt_of_line

_COUNTED = re.compile(r"^(eco_prompts_total|eco_answer_hits_total)\{(.*)\} (\S+)$", re.MULTILINE)


@dataclass
class Times:
    """Of one kind of requests, in milliseconds: to the first token, between chunks, in all; and chunks an answer."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL of a server that eco serve runs")
    parser.add_argument("--admin", required=True, help="its admin address, with /metrics")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="of each answer [48]")
    parser.add_argument("--rounds", type=int, default=2, help="times every question is asked [2]; the first is cold")
    parser.add_argument("questions", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    texts = [prompt_of_line(line) for path in options.questions for line in path.read_text().splitlines() if line]
    table = Table(
        "prompt",
        "answer",
        "round",
        "requests",
        "TTFT ms, p50",
        "p95",
        "between chunks ms, p50",
        "whole ms, p50",
        "chunks",
    )
    with httpx.Client(timeout=120) as client:
        model = client.get(f"{options.url}/v1/models").raise_for_status().json()["data"][0]["id"]
        for number in range(1, options.rounds + 1):
            kinds: dict[tuple[str, str], Times] = defaultdict(Times)
            for text in texts:
                before = _counts(client, options.admin)
                body = {"model": model, "stream": True, "temperature": 0, "max_tokens": options.max_new_tokens}
                told = _timed(client, options.url, body | {"messages": [{"role": "user", "content": text}]})
                after = _counts(client, options.admin)
                rose = {key for key, value in after.items() if value > before.get(key, 0.0)}
                outcome = next((part for name, part in rose if name == "eco_prompts_total"), "?")
                hit = next((part for name, part in rose if name == "eco_answer_hits_total"), "passed")
                own = kinds[outcome, hit]
                own.first.append(told[0])
                own.between += [late - early for early, late in itertools.pairwise(told)]
                own.total.append(told[-1])
                own.chunks.append(len(told))
            for (outcome, hit), own in sorted(kinds.items()):
                late = sorted(own.first)[int(0.95 * (len(own.first) - 1))]
                values = (median(own.first), late, median(own.between or [0.0]), median(own.total), median(own.chunks))
                table.add_row(outcome, hit, str(number), str(len(own.first)), *(f"{value:.1f}" for value in values))
    Console().print(table)


def _timed(client: httpx.Client, url: str, body: dict[str, object]) -> list[float]:
    """When each chunk with text came, in milliseconds from the request."""
    started, found = time.perf_counter(), []
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    found.append((time.perf_counter() - started) * 1000)
    return found or [(time.perf_counter() - started) * 1000]


def _counts(client: httpx.Client, admin: str) -> dict[tuple[str, str], float]:
    """The guard's counters, by name and by outcome or action."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for name, labels, value in _COUNTED.findall(client.get(f"{admin}/metrics").raise_for_status().text):
        label = re.search(r'(?:outcome|action)="([^"]*)"', labels)
        found[name, label.group(1) if label else ""] += float(value)
    return found


if __name__ == "__main__":
    main()

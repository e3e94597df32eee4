"""`make bench-guard`: what the guard adds to an unflagged request, and to the server's memory.

Time: decode, segments, encoder and head for prompts never seen before (no cache hit), on one core, beside the same
encoder run by torch in float32. Memory: the resident size of the API server process with the guard against plain
vLLM's, after the same requests.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

_SIZES = {32: 300, 512: 60, 4096: 12}
_WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-memory", action="store_true", help="skip the part that starts two servers")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from console.quiet import quiet_transformers
    from demo.models import build_models
    from optimizer import BuildOptions, InputOptions, build_policy

    console = Console()
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        build = build_models(console=console)
        # A given strength: the search does not change what a request costs.
        policy = build_policy(
            BuildOptions(
                model=str(build.model),
                inputs=InputOptions(forget=build.forget_examples, retain=build.retain_examples),
                out=Path(folder) / "policy",
                strength=10.0,
            ),
            console=console,
        ).path
        _time(build, policy, console)
        if not options.no_memory:
            _memory(build, policy, Path(folder), console)


def _time(build: Any, policy: Path, console: Console) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch
    from transformers import AutoTokenizer

    from classifiers import Encoder, resolve_encoder
    from corruption import EmbeddingRows
    from guard import Guard, decoder_of, load_bundle, load_policy, template_of
    from sources.everyday import general_prompts

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(build.model)
    rows = EmbeddingRows.open(build.model)
    bundle = load_bundle(policy)
    encoder = Encoder.open(resolve_encoder(bundle.config.classifier.encoder), threads=1)
    loaded = load_policy(bundle, encoder, hidden_size=rows.hidden_size, embedding_digest=rows.digest())
    decode, template = decoder_of(tokenizer), template_of(tokenizer)
    guard = Guard([loaded], encoder=encoder, decode=decode, template=template, rows=rows, secret=bytes(32))
    reference = _torch_encoder()
    table = Table(title="Time added to an unflagged request, one core, no cache hit [ms]")
    for column in ("prompt tokens", "guard p50", "guard p99", "cached p50", "torch fp32 encoder p50", "ratio"):
        table.add_column(column, justify="right")
    words = sorted({word for prompt in general_prompts() for word in prompt.split()})
    empty = [{"role": "user", "content": ""}]
    frame = tokenizer.apply_chat_template(empty, add_generation_prompt=True, tokenize=True, return_dict=False)
    middle = frame.index(tokenizer.eos_token_id)
    for tokens, repeats in _SIZES.items():
        # Chats of everyday words, `tokens` long when rendered, no two alike.
        chooser = random.Random(tokens)  # noqa: S311 - a reproducible choice
        prompts = []
        for _ in range(repeats + _WARM_UP):
            text = " ".join(chooser.choice(words) for _ in range(tokens))
            content = tokenizer(text, add_special_tokens=False)["input_ids"]
            prompts.append(frame[:middle] + content[: max(tokens - len(frame), 1)] + frame[middle:])
        fresh = _measure(guard.protect, prompts)
        cached = _measure(guard.protect, prompts)
        torch_ms = _measure(reference, [tokenizer.decode(ids) for ids in prompts[: max(12, repeats // 4)]])
        p50 = statistics.median(fresh)
        cells = (p50, float(np.percentile(fresh, 99)), statistics.median(cached), statistics.median(torch_ms))
        table.add_row(str(tokens), *(f"{cell:.2f}" for cell in cells), f"{p50 / cells[3]:.2f}")
    console.print(table)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _torch_encoder() -> Callable[[str], Any]:
    """The alternative: the encoder's own weights in torch float32, windows of its full length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from classifiers.export.hub import carrier_folder

    folder = carrier_folder()
    if folder is None:
        sys.exit("the encoder's carrier package is not installed; make venv installs it")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> Any:
        encoded = tokenizer(
            text, truncation=True, max_length=128, stride=0, return_overflowing_tokens=True, padding=True
        )
        with torch.inference_mode():
            return model(
                input_ids=torch.tensor(encoded["input_ids"]), attention_mask=torch.tensor(encoded["attention_mask"])
            )

    return embed


def _measure(call: Callable[[Any], Any], inputs: list[Any]) -> list[float]:
    """Milliseconds of each call, the first few left out."""
    times = []
    for item in inputs:
        started = time.perf_counter()
        call(item)
        times.append(1000 * (time.perf_counter() - started))
    return times[_WARM_UP:]


def _memory(build: Any, policy: Path, folder: Path, console: Console) -> None:
    from demo.probes import probes
    from demo.run import ask_all
    from demo.servers import guarded_server, plain_server
    from demo.world import World

    asked = probes(World.generate())[:400]
    sizes = {}
    plain_one = plain_server(build.model, port=8090, log=folder / "plain.log")
    guarded_one = guarded_server(build.model, [policy], port=8090, admin_port=8091, log=folder / "guarded.log")
    for name, server in (("plain", plain_one), ("guarded", guarded_one)):
        with server:
            asyncio.run(ask_all(server, asked))
            if server.process is None:
                sys.exit("the server is gone")
            status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
            sizes[name] = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024
    table = Table(title=f"Resident memory of the API server process after {len(asked)} requests")
    for column in ("plain vLLM [MB]", "guarded [MB]", "difference [MB]", "ratio"):
        table.add_column(column, justify="right")
    plain, guarded = sizes["plain"], sizes["guarded"]
    table.add_row(f"{plain:.0f}", f"{guarded:.0f}", f"{guarded - plain:+.0f}", f"{guarded / plain:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()

"""`make bench-guard`: what `Guard.protect` takes for prompts that no cache has seen, on one core.

Texts are those of `benchmarks/inputs.py`: a user's, and some that are meant to cost. The process is warmed by other
text. Beside them: the twentieth turn of a conversation against its first, answers read as they come, many policies,
the corruption of a flagged prompt in the width of real models, and a Hugging Face text-classification pipeline in the
shape of RoBERTa-base, which classifies and does nothing else. Wall clock, and processor time of the process, which
other work on the machine lengthens less.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_REPEATS = {32: 200, 512: 60, 4096: 16}
_WARM_UP = 8
#: No more of one kind and size after this; what is meant to cost may take seconds a call.
_CELL_S, _FEWEST = 20.0, 3
_TURNS, _CONVERSATIONS, _TURN_WORDS = 20, 8, 45
_CLASSIFIED_TOKENS = 512
_ANSWERED_TOKENS = 128
_CORRUPTED_TOKENS, _CORRUPTED_PROMPTS = 4096, 12


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over many: by the clock on the wall, and of the process on its processors."""

    count: int
    p50: float
    p95: float
    worst: float
    cpu_p50: float
    flagged: int = 0
    """Prompts that a policy flagged: their rows are corrupted too, which takes longer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model that --policy was built for")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="a policy; default: one for a model made here")
    parser.add_argument(
        "--tokenizer", choices=("wordpiece", "bytes"), default="wordpiece", help="of the model made here"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 512, 4096], help="prompt lengths [32 512 4096]")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds of text; default: all")
    parser.add_argument("--policies", type=int, nargs="*", default=[1, 100, 1000, 10000], help="[1 100 1000 10000]")
    parser.add_argument("--scale", type=float, default=1.0, help="repetitions, as a multiple of the default ones [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    if (options.model is None) != (options.policy is None):
        parser.error("--policy and --model come together")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.inputs import CACHE, HARD, KINDS, ORDINARY
    from benchmarks.served_model import Shape, build_model, build_policy_for

    if unknown := set(options.kinds or ()) - set(KINDS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: expected {', '.join(KINDS)}")
    model, policy = options.model, options.policy
    if model is None:
        model = build_model(CACHE, Shape(tokenizer=options.tokenizer))
        policy, _ = build_policy_for(model, CACHE)
    _one_core()
    bench = Bench(model, policy, options.scale)
    console = Console()
    chosen = options.kinds or list(KINDS)
    report: dict[str, Any] = {"machine": _machine(), "model": str(model), "policy": str(policy)}
    report["kinds"] = {}
    for kind in chosen:
        report["kinds"][kind] = found = bench.kind(kind, options.tokens)
        console.print(
            f"{kind}: {', '.join(f'{timing.p50:.1f} ms (cpu {timing.cpu_p50:.1f})' for timing in found.values())}",
            highlight=False,
        )
    for title, group in (("What users write", ORDINARY), ("What is meant to cost", HARD)):
        rows = [
            (kind, str(tokens), timing)
            for kind, sizes in report["kinds"].items()
            if kind in group
            for tokens, timing in sizes.items()
        ]
        console.print(_table(f"{title}: Guard.protect, text never seen [ms]", ("text", "tokens"), rows))
    report["conversation"] = bench.conversations()
    console.print(_table(f"A conversation of {_TURNS} turns [ms]", ("prompt",), _rows(report["conversation"])))
    report["answers"] = bench.answers()
    title = f"An answer of {_ANSWERED_TOKENS} tokens, read as it comes [ms]"
    console.print(_table(title, ("text",), _rows(report["answers"])))
    counts = options.policies if bench.can_be_cloned else []
    report["policies"] = {str(count): bench.policies(count) for count in counts}
    rows = [(count, kind, timing) for count, kinds in report["policies"].items() for kind, timing in kinds.items()]
    console.print(_table("Many policies, 512 tokens [ms]", ("policies", "text"), rows))
    report["corruption"] = bench.corruption()
    title = f"Corruption alone of {_CORRUPTED_TOKENS} flagged tokens of prose [ms]"
    console.print(_table(title, ("embeddings, dimensions",), _rows(report["corruption"])))
    report["classification"] = bench.classification()
    title = f"Classification of {_CLASSIFIED_TOKENS} tokens of prose [ms]"
    console.print(_table(title, ("by",), _rows(report["classification"])))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2, default=dataclasses.asdict) + "\n", encoding="utf-8")


class Bench:
    """A guard with one policy, and prompts for it."""

    def __init__(self, model: Path, policy: Path, scale: float) -> None:
        from transformers import AutoTokenizer

        from classifiers import Encoder, resolve_encoder
        from corruption import EmbeddingRows
        from guard import decoder_of, load_bundle, load_policy, template_of

        self._scale, self._model = scale, model
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        rows, bundle = EmbeddingRows.open(model), load_bundle(policy)
        shared = bundle.config.classifier.kind == "head"
        encoder = Encoder.open(resolve_encoder(bundle.config.classifier.encoder), threads=1) if shared else None
        self._policy = load_policy(bundle, encoder, hidden_size=rows.hidden_size, embedding_digest=rows.digest())
        self._parts: dict[str, Any] = {
            "encoder": encoder,
            "decode": decoder_of(self._tokenizer),
            "template": template_of(self._tokenizer),
            "rows": rows,
            "secret": bytes(32),
        }
        self._guard = self._open([self._policy])

    def kind(self, kind: str, sizes: Iterable[int]) -> dict[str, Timing]:
        """Prompts of one kind in each size. All come from one stream, so none was seen before."""
        from benchmarks.inputs import Stream

        stream = Stream(kind, self._tokenizer)
        found = {}
        for tokens in sizes:
            repeats = self._repeats(_REPEATS.get(tokens, max(65_536 // tokens, 8)))
            _measure(self._guard.protect, (stream.prompt(tokens) for _ in range(_WARM_UP)), _CELL_S / 4)
            found[str(tokens)] = _measure(self._guard.protect, (stream.prompt(tokens) for _ in range(repeats)), _CELL_S)
        return found

    @property
    def can_be_cloned(self) -> bool:
        """A policy with an encoder of its own is not: a thousand of them are a thousand encoders."""
        return self._policy.head is not None

    def conversations(self) -> dict[str, Timing]:
        """The first and the last turn, the last one by a guard that saw no turn before it."""
        from benchmarks.inputs import Stream

        stream = Stream("prose", self._tokenizer, seed=1)
        turns: list[list[Any]] = [[] for _ in range(_TURNS)]
        for _ in range(self._repeats(_CONVERSATIONS)):
            messages: list[dict[str, str]] = []
            for turn in range(_TURNS):
                messages.append({"role": "user", "content": stream.text(_TURN_WORDS)})
                turns[turn].append(
                    self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                )
                messages.append({"role": "assistant", "content": stream.text(_TURN_WORDS)})
        known, unknown = self._open([self._policy]), self._open([self._policy])
        for guard in (known, unknown):
            for _ in range(_WARM_UP):
                guard.protect(stream.prompt(512))
        timings = [_measure(known.protect, prompts) for prompts in turns]
        first, last = (round(statistics.mean(map(len, prompts))) for prompts in (turns[0], turns[-1]))
        return {
            f"first turn, {first} tokens": timings[0],
            f"turn {_TURNS}, {last} tokens": timings[-1],
            f"turn {_TURNS}, none seen before": _measure(unknown.protect, turns[-1]),
        }

    def answers(self) -> dict[str, Timing]:
        """Text of each kind as the answer to other text of the kind, token by token, with the looks that fall due."""
        from benchmarks.inputs import ORDINARY, Stream

        guard = self._open([self._policy])

        def read(tokens: list[int]) -> None:
            asked, said = tokens[:-_ANSWERED_TOKENS], tokens[-_ANSWERED_TOKENS:]
            watch = guard.answers.watch(asked)
            for number, token in enumerate(said, 1):
                if watch.add([token], done=number == len(said)):
                    for _ in watch.look():
                        pass

        found = {}
        for kind in ORDINARY:
            stream = Stream(kind, self._tokenizer, seed=5)
            texts = [stream.content(64 + _ANSWERED_TOKENS) for _ in range(_WARM_UP + self._repeats(40))]
            _measure(read, texts[:_WARM_UP])
            found[kind] = _measure(read, texts[_WARM_UP:])
        return found

    def policies(self, count: int) -> dict[str, Timing]:
        """The policy and copies of it with other names, for prose and for a text full of names."""
        from benchmarks.inputs import Stream
        from benchmarks.served_model import clones

        guard = self._open(clones(self._policy, count))
        found = {}
        for kind in ("prose", "biographies"):
            stream = Stream(kind, self._tokenizer, seed=2)
            _measure(guard.protect, (stream.prompt(512) for _ in range(_WARM_UP)), _CELL_S / 4)
            found[kind] = _measure(guard.protect, (stream.prompt(512) for _ in range(self._repeats(30))), _CELL_S)
        return found

    def corruption(self) -> dict[str, Timing]:
        """What a flagged prompt costs after its classification, in rows as wide as real models have."""
        import torch

        from benchmarks.inputs import CACHE, Stream
        from benchmarks.served_model import build_embeddings
        from corruption import CorruptionSpec, EmbeddingRows

        stream = Stream("prose", self._tokenizer, seed=4)
        prompts = [stream.prompt(_CORRUPTED_TOKENS) for _ in range(_FEWEST + self._repeats(_CORRUPTED_PROMPTS))]
        found = {}
        for width, dtype in ((2048, torch.bfloat16), (4096, torch.bfloat16), (4096, torch.float32)):
            rows = EmbeddingRows.open(build_embeddings(CACHE, self._model, width, dtype))
            for dims in (1, None):
                spec = CorruptionSpec(method="rand_noise_first_n", dims=dims, strength=1.0)
                config = self._policy.bundle.config.model_copy(update={"corruption": spec, "on_error": "corrupt"})
                policy = dataclasses.replace(
                    self._policy, bundle=dataclasses.replace(self._policy.bundle, config=config)
                )
                guard = self._open([policy], rows=rows, dtype=dtype)
                # What failed to be classified is corrupted whole, and nothing else is done to it.
                corrupt = partial(guard.on_error, error=RuntimeError())
                _measure(corrupt, prompts[:_FEWEST])
                name = f"{width} in {str(dtype).removeprefix('torch.')}, {'one' if dims else 'all'}"
                found[name] = _measure(corrupt, prompts[_FEWEST:])
        return found

    def classification(self) -> dict[str, Timing]:
        """The guard beside a pipeline with the same prompts, one after the other."""
        from benchmarks.inputs import Stream

        stream = Stream("prose", self._tokenizer, seed=3)
        prompts = [stream.prompt(_CLASSIFIED_TOKENS) for _ in range(_FEWEST + self._repeats(20))]
        guard, pipeline = self._open([self._policy]), roberta_pipeline(self._tokenizer)
        texts = [self._tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        for prompt, text in zip(prompts[:_FEWEST], texts[:_FEWEST], strict=True):
            guard.protect(prompt)
            pipeline(text)
        return {
            "Guard.protect": _measure(guard.protect, prompts[_FEWEST:]),
            "text-classification pipeline, RoBERTa-base": _measure(pipeline, texts[_FEWEST:]),
        }

    def _open(self, policies: Sequence[Any], **parts: Any) -> Any:
        """A guard, with the heap frozen as vLLM freezes a server's: else the collector looks through all of it."""
        from guard import Guard

        guard = Guard(policies, **{**self._parts, **parts})
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return guard

    def _repeats(self, count: int) -> int:
        return max(round(count * self._scale), 3)


def roberta_pipeline(tokenizer: Any) -> Callable[[str], Any]:
    """Text to a label by a classifier of RoBERTa-base's size with random weights (125 million), in float32."""
    import torch
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification, pipeline

    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    limited = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=_CLASSIFIED_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )
    model: Any = RobertaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    classify = pipeline("text-classification", model=model.eval(), tokenizer=limited, device="cpu")

    def call(text: str) -> Any:
        return classify(text, truncation=True)

    return call


def summary(wall_ms: Sequence[float], cpu_ms: Sequence[float], flagged: int = 0) -> Timing:
    """Median, 95th percentile (the smallest value with 95 % at or below it) and maximum."""
    ordered = sorted(wall_ms)
    rank = max(-(-95 * len(ordered) // 100), 1)
    return Timing(
        len(ordered), statistics.median(ordered), ordered[rank - 1], ordered[-1], statistics.median(cpu_ms), flagged
    )


def _measure(call: Callable[[Any], Any], inputs: Iterable[Any], limit_s: float = math.inf) -> Timing:
    """Times `call` on each input, or on fewer (3 at least) where they take more than `limit_s` together."""
    wall: list[float] = []
    cpu: list[float] = []
    flagged = 0
    for item in inputs:
        if len(wall) >= _FEWEST and sum(wall) > 1000 * limit_s:
            break
        started, started_cpu = time.perf_counter(), time.process_time()
        outcome = call(item)
        wall.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - started_cpu))
        flagged += any(verdict.flagged for verdict in getattr(outcome, "verdicts", ()))
    return summary(wall, cpu, flagged)


def _rows(timings: dict[str, Timing]) -> list[tuple[str, Timing]]:
    return list(timings.items())


def _table(title: str, labels: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    """`rows` are the labels' texts and a `Timing`."""
    table = Table(title=title)
    for label in labels:
        table.add_column(label)
    for column in ("p50", "p95", "worst", "cpu p50", "flagged"):
        table.add_column(column, justify="right")
    for *texts, timing in rows:
        figures = (f"{value:.2f}" for value in (timing.p50, timing.p95, timing.worst, timing.cpu_p50))
        table.add_row(*texts, *figures, f"{timing.flagged} / {timing.count}")
    return table


def _one_core() -> None:
    """Everything from here on runs on one core, by one thread."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "python": platform.python_version(), "load_1_min": os.getloadavg()[0]}


if __name__ == "__main__":
    main()

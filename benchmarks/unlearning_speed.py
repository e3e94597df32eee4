"""`make bench-unlearning-speed`: the training step of unlearning jobs beside a plain one.

The plain trainer is written as such scripts are: each stream is a batch of its own, padded to its longest sequence;
logits of all positions; a second, frozen model in memory that runs in every step. Ours packs all streams into one
forward, computes logits of answers only, and reads the frozen model's outputs from a cache on disk. Both start from the
same weights, take the same examples in the same order with the same optimizer, and take turns step by step, so that
other work on the machine slows both.

These weights are the frozen model's with a little noise. Without it the losses of a model that knows its examples by
heart are all zero, however computed; and SCRUB's first steps, away from a reference that the model still equals, have a
gradient of zero: Adam would follow its rounding errors.

Throughput is in real tokens (the same for both) of all steps, once without and once with the time it took to build
the cache. Exits 2 where the losses of a step differ by more than 1e-4 (of the loss, where that is above 1).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from console.quiet import quiet_transformers
from offline_training.data.encoding import ExampleEncoder
from offline_training.data.packing import PackedBatch, pack
from offline_training.data.plan import Plan, Sets, Step, make_plan
from offline_training.data.sets import check_answers, check_sets, load_set
from offline_training.data.tokens import TokenizedExample
from offline_training.errors import JobError
from offline_training.forward import AnswerForward, check_packing
from offline_training.methods.method import Method
from offline_training.methods.registry import METHODS
from offline_training.reference.cache import ReferenceCache, ReferenceSettings

_METHODS = ("kl", "llmu", "scrub")
_TOLERANCE = 1e-4
_WARM_UP = 2
_NOISE = 0.3  # of each weight tensor's standard deviation

Streams = dict[Any, list[TokenizedExample]]


@dataclass
class Race:
    """What one method took: seconds and losses of each step."""

    method: str
    tokens: int
    plain_s: list[float]
    ours_s: list[float]
    plain_losses: list[float]
    our_losses: list[float]
    build_s: float
    cache_kind: str

    def ratio(self, *, with_build: bool) -> float:
        return sum(self.plain_s) / (sum(self.ours_s) + self.build_s * with_build)

    def difference(self) -> float:
        pairs = zip(self.plain_losses, self.our_losses, strict=True)
        return max(abs(plain - ours) / max(1.0, abs(plain)) for plain, ours in pairs)


def main() -> None:
    arguments = _arguments()
    console = Console()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        with quiet_transformers():
            races = _run(arguments, console)
    except JobError as error:
        sys.exit(f"error: {error}")
    console.print(_table(races))
    if apart := [race.method for race in races if race.difference() > _TOLERANCE]:
        print(f"does not hold: losses equal to {_TOLERANCE:g} ({', '.join(apart)})")
        sys.exit(2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; without it the demo's model and examples")
    parser.add_argument("--forget", type=Path, help="questions with answers, JSON lines")
    parser.add_argument("--retain", type=Path, help="questions with answers, JSON lines")
    parser.add_argument("--methods", nargs="+", choices=_METHODS, default=list(_METHODS))
    parser.add_argument("--epochs", type=int, default=5, help="of the job; scrub: of either kind together")
    parser.add_argument("--steps", type=int, help="at most so many steps; the cache holds what these need")
    parser.add_argument("--batch-size", type=int, default=32, help="examples of each stream in a step")
    parser.add_argument("--row-tokens", type=int, default=256, help="length of a packed row")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, help="of torch; else its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: seconds of this process, which other work on a busy machine lengthens less; with --threads 1",
    )
    arguments = parser.parse_args()
    given = [arguments.model is not None, arguments.forget is not None, arguments.retain is not None]
    if any(given) and not all(given):
        parser.error("--model, --forget and --retain go together: give all three or none")
    for name, least in (("epochs", 2), ("batch_size", 1), ("row_tokens", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: give at least {least}")
    return arguments


def _run(arguments: argparse.Namespace, console: Console) -> list[Race]:
    from transformers import AutoTokenizer

    if arguments.model is None:
        from demo.models import build_models

        build = build_models(console=console)
        arguments.model, arguments.forget, arguments.retain = build.model, build.forget_examples, build.retain_examples
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
    encoder = ExampleEncoder(tokenizer, context_tokens=512)
    forget = load_set(str(arguments.forget), "forget", encoder)
    retain = load_set(str(arguments.retain), "retain", encoder)
    check_sets(forget, retain)
    for loaded in (forget, retain):
        check_answers(loaded, "this benchmark")
    sets = Sets({"forget": forget, "retain": retain}, encoder)
    return [_race(METHODS[name], sets, arguments, console) for name in arguments.methods]


def _race(method: Method, sets: Sets, arguments: argparse.Namespace, console: Console) -> Race:
    settings = method.settings()
    plan = make_plan(
        method.epochs(arguments.epochs, settings),
        {stream: len(found.examples) for stream, found in sets.by_stream.items()},
        batch_size=arguments.batch_size,
        shares=1,
        seed=0,
    )
    steps = plan.steps[: arguments.steps]
    console.print(f"{method.name}: {len(steps)} of {len(plan.steps)} steps", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        plain = _PlainTrainer(method.name, settings, arguments)
        ours = _OurTrainer(method, settings, sets, Plan(steps, 1), Path(folder) / "reference", arguments)
        for step in steps[:_WARM_UP]:  # allocators and kernels; no weight changes
            plain.step(sets.examples(step), train=False)
            ours.step(step, sets.examples(step), train=False)
        clock = _clock(arguments)
        race = Race(method.name, 0, [], [], [], [], ours.build_s, ours.references.kind)
        for step in steps:
            examples = sets.examples(step)
            race.tokens += sum(len(example.ids) for stream in examples.values() for example in stream)
            started = clock()
            race.plain_losses.append(plain.step(examples))
            between = clock()
            race.our_losses.append(ours.step(step, examples))
            race.plain_s.append(between - started)
            race.ours_s.append(clock() - between)
    return race


def _clock(arguments: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if arguments.clock == "processor" else time.perf_counter


def _model(arguments: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device)


def _add_noise(model: torch.nn.Module) -> None:
    """The same noise for the same model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise, alpha=_NOISE * float(parameter.std()))


class _OurTrainer:
    """Packed streams in one forward, cached reference: the parts that `eco unlearn` runs."""

    def __init__(
        self, method: Method, settings: Any, sets: Sets, plan: Plan, folder: Path, arguments: argparse.Namespace
    ) -> None:
        self._method, self._settings = method, settings
        self._model = _model(arguments)
        self._forward = AnswerForward(self._model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=arguments.learning_rate)
        self._device = arguments.device
        few = sets.by_stream["retain"].examples[:4]
        packs = check_packing(self._model, pack({"retain": few}, row_tokens=arguments.row_tokens).to(self._device))
        self._row_tokens = arguments.row_tokens if packs else None
        clock = _clock(arguments)
        started = clock()
        self.references = ReferenceCache.build(
            folder,
            self._forward,
            self._model,
            {stream: sets.by_stream[stream].examples for stream in sorted(method.reference)},
            ReferenceSettings("auto", budget_bytes=1 << 34, batch_tokens=8192, row_tokens=self._row_tokens),
            key="benchmark",
            only={stream: plan.used(stream) for stream in method.reference},
        )
        self.build_s = clock() - started
        _add_noise(self._model)

    def step(self, step: Step, examples: Streams, *, train: bool = True) -> float:
        batch: PackedBatch = pack(examples, row_tokens=self._row_tokens).to(self._device)
        references = {
            stream: self.references.take(stream, step.numbers[stream], self._device)
            for stream in self._method.reference
            if stream in step.numbers
        }
        answers = self._forward.answers(batch, self._forward.forward(self._model, batch), references)
        terms = self._method.terms(answers, self._settings)
        loss = torch.stack([term.weight * term.values.mean() for term in terms]).sum()
        return _update(loss, self._optimizer, train=train)


class _PlainTrainer:
    """Padded batches, full logits, and the frozen model beside the trained one."""

    def __init__(self, method: str, settings: Any, arguments: argparse.Namespace) -> None:
        self._method, self._settings, self._device = method, settings, arguments.device
        self._model, self._frozen = _model(arguments), _model(arguments).eval().requires_grad_(False)
        _add_noise(self._model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=arguments.learning_rate)

    def step(self, examples: Streams, *, train: bool = True) -> float:
        settings = self._settings
        if self._method == "kl":
            loss = -settings.forget_weight * self._cross_entropy(examples["forget"])
            loss = loss + settings.retain_weight * self._divergence(examples["retain"])
        elif self._method == "llmu":
            loss = -settings.forget_weight * self._cross_entropy(examples["forget"])
            loss = loss + settings.random_weight * self._cross_entropy(examples["random"])
            loss = loss + settings.retain_weight * self._divergence(examples["retain"])
        elif "forget" in examples:  # scrub, max step
            loss = -(settings.temperature**2) * self._divergence(examples["forget"], settings.temperature)
        else:  # scrub, min step: one forward gives both terms
            distillation = settings.distillation_weight * settings.temperature**2
            loss = self._retained(examples["retain"], settings.retain_weight, distillation, settings.temperature)
        return _update(loss, self._optimizer, train=train)

    def _cross_entropy(self, examples: Sequence[TokenizedExample]) -> torch.Tensor:
        inputs, labels = self._padded(examples)
        return _cross_entropy(self._model(**inputs).logits, labels)

    def _divergence(self, examples: Sequence[TokenizedExample], temperature: float = 1.0) -> torch.Tensor:
        inputs, labels = self._padded(examples)
        with torch.no_grad():
            frozen = self._frozen(**inputs).logits
        return _divergence(self._model(**inputs).logits, frozen, labels, temperature)

    def _retained(
        self, examples: Sequence[TokenizedExample], weight: float, distillation: float, temperature: float
    ) -> torch.Tensor:
        inputs, labels = self._padded(examples)
        with torch.no_grad():
            frozen = self._frozen(**inputs).logits
        logits = self._model(**inputs).logits
        divergence = _divergence(logits, frozen, labels, temperature)
        return weight * _cross_entropy(logits, labels) + distillation * divergence

    def _padded(self, examples: Sequence[TokenizedExample]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Model inputs (B, T) and the label of each position (B, T), -100 on prompts and padding."""
        width = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
            labels[row, example.prompt_length : len(example.ids)] = torch.tensor(example.targets)
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}, labels.to(self._device)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def _divergence(logits: torch.Tensor, frozen: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(frozen ‖ model), the mean over answer tokens."""
    model_logprobs = functional.log_softmax(logits[:, :-1] / temperature, dim=-1)  # (B, T-1, V)
    frozen_logprobs = functional.log_softmax(frozen[:, :-1] / temperature, dim=-1)
    values = functional.kl_div(model_logprobs, frozen_logprobs, reduction="none", log_target=True).sum(-1)
    answers = labels[:, 1:] != -100
    return (values * answers).sum() / answers.sum()


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer, *, train: bool) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    if train:
        optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())  # waits for the device


def _table(races: Sequence[Race]) -> Table:
    table = Table(title="real tokens per second, and ours against plain")
    columns = ("method", "steps", "plain", "ours", "ratio", "with cache", "cache", "built in", "losses", "apart")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for race in races:
        table.add_row(
            race.method,
            f"{len(race.ours_s)}",
            f"{race.tokens / sum(race.plain_s):,.0f}",
            f"{race.tokens / sum(race.ours_s):,.0f}",
            f"{race.ratio(with_build=False):.2f}",
            f"{race.ratio(with_build=True):.2f}",
            race.cache_kind,
            f"{race.build_s:.1f} s",
            f"{min(race.plain_losses):.3g} to {max(race.plain_losses):.3g}",
            f"{race.difference():.1e}",
        )
    return table


if __name__ == "__main__":
    main()

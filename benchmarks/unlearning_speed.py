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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from console.quiet import quiet_transformers
from offline_training.data.encoding import ExampleEncoder
from offline_training.data.packing import pack
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
class Trainer:
    """One of the two: how it computes a step's loss, and the seconds and losses of its steps."""

    loss: Callable[[Step, Streams], torch.Tensor]
    optimizer: torch.optim.Optimizer
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, step: Step, examples: Streams, *, train: bool = True) -> None:
        started = self.clock()
        loss = self.loss(step, examples)
        loss.backward()  # type: ignore[no-untyped-call]
        if train:
            self.optimizer.step()
        self.optimizer.zero_grad()
        value = float(loss.detach())  # waits for the device
        if train:
            self.losses.append(value)
            self.seconds.append(self.clock() - started)


@dataclass
class Race:
    """What one method took."""

    method: str
    tokens: int
    plain: Trainer
    ours: Trainer
    build_s: float
    cache_kind: str

    def ratio(self, *, with_build: bool) -> float:
        return sum(self.plain.seconds) / (sum(self.ours.seconds) + self.build_s * with_build)

    def difference(self) -> float:
        pairs = zip(self.plain.losses, self.ours.losses, strict=True)
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

    def trainer(model: Any, loss: Callable[[Step, Streams], torch.Tensor]) -> Trainer:
        """The same noise for the same model."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                    parameter.add_(noise, alpha=_NOISE * float(parameter.std()))
        optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate)
        return Trainer(loss, optimizer, _clock(arguments))

    with tempfile.TemporaryDirectory() as folder:
        model, frozen = _model(arguments), _model(arguments).eval().requires_grad_(False)
        plain = trainer(model, _plain_loss(method.name, settings, model, frozen))
        model = _model(arguments)
        plan = Plan(steps, 1)
        loss, cache, build_s = _our_loss(method, settings, sets, plan, Path(folder) / "reference", model, arguments)
        race = Race(method.name, 0, plain, trainer(model, loss), build_s, cache.kind)
        for step in steps[:_WARM_UP]:  # allocators and kernels; no weight changes
            for one in (race.plain, race.ours):
                one.step(step, sets.examples(step), train=False)
        for step in steps:
            examples = sets.examples(step)
            race.tokens += sum(len(example.ids) for stream in examples.values() for example in stream)
            for one in (race.plain, race.ours):
                one.step(step, examples)
    return race


def _clock(arguments: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if arguments.clock == "processor" else time.perf_counter


def _model(arguments: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device)


def _our_loss(
    method: Method, settings: Any, sets: Sets, plan: Plan, folder: Path, model: Any, arguments: argparse.Namespace
) -> tuple[Callable[[Step, Streams], torch.Tensor], ReferenceCache, float]:
    """Packed streams in one forward, cached reference: what `eco unlearn` runs; seconds to build the cache."""
    forward, device = AnswerForward(model), arguments.device
    few = sets.by_stream["retain"].examples[:4]
    packs = check_packing(model, pack({"retain": few}, row_tokens=arguments.row_tokens).to(device))
    row_tokens = arguments.row_tokens if packs else None
    compared = method.references(settings)
    clock = _clock(arguments)
    started = clock()
    cache = ReferenceCache.build(
        folder,
        forward,
        model,
        {stream: sets.by_stream[stream].examples for stream in sorted(compared)},
        ReferenceSettings("auto", budget_bytes=1 << 34, batch_tokens=8192, row_tokens=row_tokens),
        key="benchmark",
        only={stream: plan.used(stream) for stream in compared},
    )
    build_s = clock() - started

    def loss(step: Step, examples: Streams) -> torch.Tensor:
        batch = pack(examples, row_tokens=row_tokens).to(device)
        references = {
            stream: cache.take(stream, step.numbers[stream], device) for stream in compared if stream in step.numbers
        }
        answers = forward.answers(batch, forward.forward(model, batch), references)
        return torch.stack([term.weight * term.values.mean() for term in method.terms(answers, settings)]).sum()

    return loss, cache, build_s


def _plain_loss(method: str, settings: Any, model: Any, frozen: Any) -> Callable[[Step, Streams], torch.Tensor]:
    """Padded batches, full logits, and the frozen model beside the trained one."""

    device = model.device

    def answered(examples: Sequence[TokenizedExample]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Model inputs (B, T), the label of each position (B, T), -100 on prompts and padding, and logits (B, T, V)."""
        width = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
            labels[row, example.prompt_length : len(example.ids)] = torch.tensor(example.targets)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return inputs, labels.to(device), model(**inputs).logits

    def cross_entropy(_: object, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def divergence(
        inputs: dict[str, torch.Tensor], labels: torch.Tensor, logits: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """KL(frozen ‖ model), the mean over answer tokens."""
        with torch.no_grad():
            frozen_logits = frozen(**inputs).logits
        logprobs, frozen_logprobs = (
            functional.log_softmax(each[:, :-1] / temperature, dim=-1) for each in (logits, frozen_logits)
        )  # (B, T-1, V)
        values = functional.kl_div(logprobs, frozen_logprobs, reduction="none", log_target=True).sum(-1)
        answers = labels[:, 1:] != -100
        return (values * answers).sum() / answers.sum()

    def loss(_: Step, examples: Streams) -> torch.Tensor:
        if method == "scrub":
            temperature = settings.temperature
            if "forget" in examples:  # max step
                away: torch.Tensor = -(temperature**2) * divergence(*answered(examples["forget"]), temperature)
                return away
            retained = answered(examples["retain"])  # min step: one forward gives both terms
            distillation = settings.distillation_weight * temperature**2 * divergence(*retained, temperature)
            back: torch.Tensor = settings.retain_weight * cross_entropy(*retained) + distillation
            return back
        total: torch.Tensor = -settings.forget_weight * cross_entropy(*answered(examples["forget"]))
        if method == "llmu":
            total = total + settings.random_weight * cross_entropy(*answered(examples["random"]))
        return total + settings.retain_weight * divergence(*answered(examples["retain"]))

    return loss


def _table(races: Sequence[Race]) -> Table:
    table = Table(title="real tokens per second, and ours against plain")
    columns = ("method", "steps", "plain", "ours", "ratio", "with cache", "cache", "built in", "losses", "apart")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for race in races:
        table.add_row(
            race.method,
            f"{len(race.ours.seconds)}",
            f"{race.tokens / sum(race.plain.seconds):,.0f}",
            f"{race.tokens / sum(race.ours.seconds):,.0f}",
            f"{race.ratio(with_build=False):.2f}",
            f"{race.ratio(with_build=True):.2f}",
            race.cache_kind,
            f"{race.build_s:.1f} s",
            f"{min(race.plain.losses):.3g} to {max(race.plain.losses):.3g}",
            f"{race.difference():.1e}",
        )
    return table


if __name__ == "__main__":
    main()

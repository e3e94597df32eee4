"""Which examples are in which step, and their sequences: everything random about a job's data, drawn before it starts.

A plan follows from the seed alone, so an interrupted job resumes on the example it was about to see, and a step has
the same examples however many processes share it.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from offline_training.data.encoding import EncodedSet, ExampleEncoder
from offline_training.data.tokens import Stream, TokenizedExample, with_prompt
from offline_training.errors import SettingsError
from sources.examples import Example

RandomPair = tuple[int, int]
"""Number of the forget example whose prompt is asked, number of the retain example whose answer is given."""

_ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class Step:
    """The examples of one optimizer step, over all processes, as numbers within their sets."""

    numbers: Mapping[Stream, tuple[int, ...]]
    """For the streams of this step, save `random`."""
    random_pairs: tuple[RandomPair, ...] = ()
    epoch: int = 0
    """Which epoch the step is in, from 0."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward's share of a step."""

    step: int
    """From 0."""
    share: Step
    counted: bool
    """False: there were fewer examples than shares, and this one repeats an example that must not count."""


@dataclass(frozen=True)
class Plan:
    """All steps of a job: a data set of their micro-batches, those of one step behind each other."""

    steps: tuple[Step, ...]
    shares: int
    """Micro-batches of each step: processes times gradient accumulation."""

    def __len__(self) -> int:
        """Micro-batches in all."""
        return len(self.steps) * self.shares

    def used(self, stream: Stream) -> tuple[int, ...]:
        """Numbers of the examples of a stream that any step has, ascending."""
        return tuple(sorted({number for step in self.steps for number in step.numbers.get(stream, ())}))

    def __getitem__(self, number: int) -> MicroBatch:
        """Micro-batch `number`, from 0."""
        step, share = divmod(number, self.shares)
        whole = self.steps[step]
        prompts = list(dict.fromkeys(prompt for prompt, _ in whole.random_pairs))
        own = set(prompts[share :: self.shares])  # a prompt's random answers stay in one share
        part = Step(
            {stream: numbers[share :: self.shares] for stream, numbers in whole.numbers.items()},
            tuple(pair for pair in whole.random_pairs if pair[0] in own),
            whole.epoch,
        )
        if part.random_pairs or any(part.numbers.values()):
            return MicroBatch(step, part, counted=True)
        first = {stream: numbers[:1] for stream, numbers in whole.numbers.items()}
        one = Step(first, whole.random_pairs[:1], whole.epoch)
        return MicroBatch(step, one, counted=False)


@dataclass(frozen=True)
class Sets:
    """The examples behind the streams."""

    by_stream: Mapping[Stream, EncodedSet]
    """`forget`, `retain`, `idk`, `alternative`: those the method sees, and for `random` both `forget` and `retain`."""
    encoder: ExampleEncoder
    answers: tuple[Example, ...] = ()
    """What random answers are drawn from; none: the retain set's."""
    whole: frozenset[Stream] = frozenset()
    """Streams that are trained on with their prompts."""

    def examples(self, step: Step) -> dict[Stream, list[TokenizedExample]]:
        """The sequences of a step, or of a share of one."""
        sequences: dict[Stream, list[TokenizedExample]] = {
            stream: self.trained_on(stream, [self.by_stream[stream].examples[number] for number in numbers])
            for stream, numbers in step.numbers.items()
        }
        if step.random_pairs:
            prompts, answers = self.by_stream["forget"].texts, self.answers or self.by_stream["retain"].texts
            pairs = step.random_pairs
            combined = [self.encoder.combine(prompts[one], answers[other]) for one, other in pairs]
            sequences["random"] = self.trained_on("random", combined)
        return sequences

    def trained_on(self, stream: Stream, examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
        """Examples of a stream with the targets that its losses see."""
        return [with_prompt(example) for example in examples] if stream in self.whole else list(examples)


def make_plan(
    epochs: Sequence[tuple[Stream, ...]],
    sizes: Mapping[Stream, int],
    *,
    batch_size: int,
    shares: int,
    seed: int,
    steps: int | None = None,
    random_answers: int = 1,
    as_llmu_script: bool = False,
) -> Plan:
    """Draw a plan.

    An epoch with a stream of the forget set is one pass over that set, with as many retain examples in each step,
    drawn without replacement until all have been seen; an epoch with `retain` alone is one pass over that set. Where
    `idk` has several refusals for each example, each epoch has its own.

    Args:
        epochs: the streams of each epoch.
        sizes: examples in the sets behind the streams; `random` needs `forget` and `retain`; `idk` has as many as
            `forget`, or a multiple of it, one draw after the other.
        batch_size: examples of each stream in a step; the last step of an epoch may have fewer.
        shares: micro-batches in a step.
        steps: None: all epochs once; else exactly so many, cycling through `epochs`.
        random_answers: random answers to each prompt of the forget set in a step, for the stream `random`.
        as_llmu_script: the forget set in its own order, and the same random answers to all prompts of a step.

    Raises:
        SettingsError: a set is empty.
    """
    for stream, size in sizes.items():
        if size < 1:
            raise SettingsError(f"--{stream}: no examples; give a file with at least one")
    retained = _endless(sizes["retain"], random.Random(f"{seed} retain")) if "retain" in sizes else iter(())  # noqa: S311
    pool = sizes.get("random", sizes.get("retain"))
    answers = _endless(pool, random.Random(f"{seed} random")) if pool else iter(())  # noqa: S311
    forget_size = sizes.get("forget", sizes.get("idk", 0))

    def all_steps() -> Iterator[Step]:
        cycled = itertools.cycle(epochs) if steps is not None else iter(epochs)
        for number, streams in enumerate(cycled):
            of_forget_set = any(stream != "retain" for stream in streams)
            order = list(range(forget_size if of_forget_set else sizes["retain"]))
            if not as_llmu_script:
                random.Random(f"{seed} epoch {number}").shuffle(order)  # noqa: S311 - reproducible, nothing secret
            for start in range(0, len(order), batch_size):
                chosen = tuple(order[start : start + batch_size])
                draws = of_forget_set and "retain" in streams
                drawn = tuple(itertools.islice(retained, len(chosen))) if draws else chosen
                asked = sorted(chosen * random_answers, key=chosen.index) if "random" in streams else []
                count = random_answers if asked and as_llmu_script else len(asked)
                given = itertools.islice(answers, count)
                first = number * forget_size % sizes.get("idk", 1)
                refused = tuple(first + one for one in chosen)
                numbers = {"retain": drawn, "idk": refused}
                yield Step(
                    {name: numbers.get(name, chosen) for name in streams if name != "random"},
                    tuple(zip(asked, itertools.cycle(given) if as_llmu_script else given, strict=False)),
                    number,
                )

    return Plan(tuple(itertools.islice(all_steps(), steps if steps is not None else _ENDLESS)), shares)


def _endless(size: int, rng: random.Random) -> Iterator[int]:
    """Numbers below `size`, each once before any comes again."""
    while True:
        yield from rng.sample(range(size), size)

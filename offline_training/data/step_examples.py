"""The sequences of a plan's steps, and how many tokens and answers a step has in all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from offline_training.data.answers import Unit
from offline_training.data.plan import MicroBatch, Plan, Step
from offline_training.data.sets import EncodedSet, ExampleEncoder
from offline_training.data.tokens import Stream, TokenizedExample

__all__ = ["MicroBatches", "Sets", "unit_counts"]


@dataclass(frozen=True)
class Sets:
    """The examples behind the streams."""

    by_stream: Mapping[Stream, EncodedSet]
    """`forget`, `retain`, `idk`: those the method sees, and for `random` both `forget` and `retain`."""
    encoder: ExampleEncoder

    def examples(self, step: Step) -> dict[Stream, list[TokenizedExample]]:
        """The sequences of a step, or of a share of one."""
        found: dict[Stream, list[TokenizedExample]] = {
            stream: [self.by_stream[stream].examples[number] for number in numbers]
            for stream, numbers in step.numbers.items()
        }
        if step.random_pairs:
            prompts, answers = self.by_stream["forget"].texts, self.by_stream["retain"].texts
            found["random"] = [self.encoder.combine(prompts[one], answers[other]) for one, other in step.random_pairs]
        return found


def unit_counts(streams: Mapping[Stream, Sequence[TokenizedExample]]) -> dict[tuple[str, Unit], int]:
    """Units by stream: answers, and their targets that are in the loss."""
    counts: dict[tuple[str, Unit], int] = {}
    for stream, examples in streams.items():
        counts[stream, "sequence"] = len(examples)
        counts[stream, "token"] = sum(example.target_count for example in examples)
    return counts


class MicroBatches(Dataset[MicroBatch]):
    """A plan as a data set, in its own order."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number: int) -> MicroBatch:
        return self._plan.micro_batch(number)

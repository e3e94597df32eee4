"""The reference of `make bench-search`: the plain search for a corruption strength, as ECO published it.

arXiv 2406.07933, section 3.3, and `ZerothOrderOptimizerScalar` of its public code (chrisliu298/llm-unlearn-eco): one
strength, two-sided differences, a fixed learning rate, noise drawn anew at every forward pass, one strength measured
after the other with transformers' own `generate`. Three things are as here and not as there, so that nothing but the
way of searching and of running the model differs: only the content of the prompt is corrupted, it is the distance to
the retained value that is minimised (the code minimises the metric itself), and the strength may fall below where it
started.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.core_seconds import core_seconds
from guard import template_of
from scoring.metrics import rouge_l_recall
from scoring.scorer import Renderer

__all__ = ["Descent", "EvaluationCost", "PlainModel", "PlainSearch", "Reference", "descend", "run_reference"]

#: Starting points, times the mean length of the model's embedding rows: the only scale known beforehand.
_STARTS = (1 / 3, 1.0, 3.0, 10.0)
#: Half the way between the two sides, times the start.
_MU = 0.25
_NOISE_SEEDS = (1, 2)
#: The public code keeps the lower side above this.
_LEAST_STRENGTH = 1e-8
#: 4 prompts in a batch is what the public script has.
_OTHER_BATCHES = (4, 1)


@dataclass(frozen=True, slots=True)
class Descent:
    """How one descent goes about it.

    Attributes:
        start: first strength, in the units of the embedding rows.
        mu: half the way between the two sides of a difference, in the same units.
        learning_rate: the strength moves by this times the slope.
        seed: of the noise.
    """

    start: float
    mu: float
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class PlainSearch:
    """What one descent came to; `strength` and `value` are of the evaluation nearest to the retained value."""

    descent: Descent
    strength: float
    value: float
    distance: float
    reached: bool
    evaluations: int
    forward_passes: int
    seconds: float
    core_seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationCost:
    """What one strength costs to measure, by the number of prompts in a batch."""

    batch_size: int
    core_seconds: float
    forward_passes: int


@dataclass(frozen=True, slots=True)
class Reference:
    """Every descent, and one with the numbers of the public script (scripts/zeroth_order_optim.py), which were made
    for another model and metric."""

    startup_s: float
    descents: list[PlainSearch]
    published: PlainSearch
    costs: list[EvaluationCost]

    @property
    def arrived(self) -> list[PlainSearch]:
        """The descents that came within the tolerance, fastest first."""
        return sorted((one for one in self.descents if one.reached), key=lambda one: one.seconds)


class PlainModel:
    """A transformers model and the questions that it is asked, in batches of one fixed size.

    Args:
        folder: the checkpoint.
        questions, answers: what is asked, and what ROUGE-L compares with.
        dims: how many dimensions of a row get noise, from the first on; None: all.
        max_new_tokens: where generated answers are cut.
        batch_size: prompts in one batch.
    """

    def __init__(
        self,
        folder: str,
        questions: Sequence[str],
        answers: Sequence[str],
        *,
        dims: int | None,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        started = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.to(device).eval()
        self._model.register_forward_hook(self._count)
        self._embed = self._model.get_input_embeddings()
        self._renderer, template = Renderer(tokenizer), template_of(tokenizer)
        self._answers = answers
        self._prompts = [self._renderer.pair(*pair).prompt_ids for pair in zip(questions, answers, strict=True)]
        self._content = [[p for segment in template.segments(ids) for p in segment] for ids in self._prompts]
        self._dims = dims
        self._limit = max_new_tokens
        self.batch_size = batch_size
        self.forward_passes = 0
        self.startup_s = time.perf_counter() - started

    def _count(self, *_: object) -> None:
        self.forward_passes += 1

    def evaluate(self, strength: float, noise: torch.Generator) -> float:
        """The mean ROUGE-L recall of greedy answers to the corrupted prompts."""
        recalls: list[float] = []
        for start in range(0, len(self._prompts), self.batch_size):
            batch = range(start, min(start + self.batch_size, len(self._prompts)))
            for number, answer in zip(batch, self._generate(batch, strength, noise), strict=True):
                recalls.append(rouge_l_recall(self._answers[number], answer))
        return sum(recalls) / len(recalls)

    @torch.inference_mode()
    def _generate(self, batch: range, strength: float, noise: torch.Generator) -> list[str]:
        prompts = [self._prompts[number] for number in batch]
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.long)  # (B, T), padded on the left
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            attention[row, length - len(prompt) :] = 1
        embeddings = self._embed(ids.to(self._embed.weight.device))  # (B, T, D)
        for row, number in enumerate(batch):
            at = torch.tensor(self._content[number]) + length - len(prompts[row])
            drawn = torch.randn(len(at), self._dims or embeddings.shape[2], generator=noise)
            embeddings[row, at, : drawn.shape[1]] += strength * drawn.to(embeddings.device)
        answers = self._model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention.to(embeddings.device),
            max_new_tokens=self._limit,
            do_sample=False,
            use_cache=True,
            # So that padding is left out with the end of the answer.
            pad_token_id=min(self._renderer.end_ids, default=0),
        )
        return [self._renderer.decode(answer) for answer in answers.tolist()]


def descend(
    model: PlainModel, descent: Descent, retained_value: float, tolerance: float, max_evaluations: int
) -> PlainSearch:
    """Search until an evaluation, whichever, is within the tolerance, or there have been as many as are allowed."""
    noise = torch.Generator().manual_seed(descent.seed)
    tried: list[tuple[float, float, float]] = []  # distance, strength, value

    def distance(strength: float) -> float:
        value = model.evaluate(strength, noise)
        tried.append((abs(value - retained_value), strength, value))
        return tried[-1][0]

    def search() -> None:
        strength = descent.start
        for _ in range(max_evaluations // 2):
            if (above := distance(strength + descent.mu)) <= tolerance:
                return
            if (below := distance(max(strength - descent.mu, _LEAST_STRENGTH))) <= tolerance:
                return
            slope = (above - below) / (2 * descent.mu)
            strength = max(strength - descent.learning_rate * slope, descent.mu)

    started, core_started, passes = time.perf_counter(), core_seconds(), model.forward_passes
    search()
    took = (time.perf_counter() - started, core_seconds() - core_started)
    nearest, strength, value = min(tried)
    spent = model.forward_passes - passes
    return PlainSearch(descent, strength, value, nearest, nearest <= tolerance, len(tried), spent, *took)


def run_reference(
    model: PlainModel,
    *,
    row_length: float,
    learning_rate: float,
    retained_value: float,
    tolerance: float,
    max_evaluations: int,
    say: Callable[[str], None],
) -> Reference:
    """Descend from every starting point, with every noise seed; then see what the batch size does to one evaluation."""

    def run(start: float, mu: float, rate: float, seed: int) -> PlainSearch:
        say(f"reference from strength {start:.3g}, noise seed {seed}")
        return descend(model, Descent(start, mu, rate, seed), retained_value, tolerance, max_evaluations)

    starts = [multiple * row_length for multiple in _STARTS]
    descents = [run(start, _MU * start, learning_rate, seed) for start in starts for seed in _NOISE_SEEDS]
    published = run(start=0.1, mu=0.0999, rate=100.0, seed=_NOISE_SEEDS[0])
    sizes = (model.batch_size, *(size for size in _OTHER_BATCHES if size != model.batch_size))
    say("one evaluation in other batches")
    costs = []
    for size in sizes:
        model.batch_size, passes, started = size, model.forward_passes, core_seconds()
        model.evaluate(2 * row_length, torch.Generator().manual_seed(0))
        costs.append(EvaluationCost(size, core_seconds() - started, model.forward_passes - passes))
    return Reference(model.startup_s, descents, published, costs)

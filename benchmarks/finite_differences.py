"""The reference of `make bench-search`: the plain search for a corruption strength, as ECO published it.

arXiv 2406.07933, section 3.3, and `ZerothOrderOptimizerScalar` of its public code (chrisliu298/llm-unlearn-eco): one
strength, two-sided differences, a fixed learning rate, noise drawn anew at every forward pass, one strength measured
after the other with transformers' own `generate`. Three things are as here and not as there, so that nothing but the
way of searching and of running the model differs: only the content of the prompt is corrupted, it is the distance to
the retained value that is minimised (the code minimises the metric itself), and the strength may fall below where it
started.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.search_runs import SearchRun, timed
from classifiers import Example
from guard import template_of
from scoring.metrics import rouge_l_recall
from scoring.scorer import Renderer

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
class EvaluationCost:
    """What one strength costs to measure, by the number of prompts in a batch."""

    batch_size: int
    core_seconds: float
    forward_passes: int


@dataclass(frozen=True, slots=True)
class Reference:
    """Every descent, and one with the numbers of the public script (scripts/zeroth_order_optim.py), which were made
    for another model and metric."""

    descents: list[SearchRun]
    published: SearchRun
    costs: list[EvaluationCost]


class PlainModel:
    """A transformers model and the questions that it is asked, in batches of one fixed size.

    Args:
        folder: the checkpoint.
        examples: what is asked, and what ROUGE-L compares with.
        dims: how many dimensions of a row get noise, from the first on.
        max_new_tokens: where generated answers are cut.
        batch_size: prompts in one batch.
    """

    def __init__(
        self, folder: str, examples: Sequence[Example], *, dims: int, max_new_tokens: int, batch_size: int
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
        self.answers = [str(example.answer) for example in examples]
        pairs = zip(examples, self.answers, strict=True)
        self._prompts = [self._renderer.pair(example.prompt, answer).prompt_ids for example, answer in pairs]
        self._content = [[p for segment in template.segments(ids) for p in segment] for ids in self._prompts]
        self._dims, self._limit, self.batch_size = dims, max_new_tokens, batch_size
        self.forward_passes = 0
        self.startup_s = time.perf_counter() - started

    def _count(self, *_: object) -> None:
        self.forward_passes += 1

    @torch.inference_mode()
    def evaluate(self, strength: float, noise: torch.Generator) -> float:
        """The mean ROUGE-L recall of greedy answers to the corrupted prompts."""
        generated: list[str] = []
        for first in range(0, len(self._prompts), self.batch_size):
            prompts = self._prompts[first : first + self.batch_size]
            length = max(map(len, prompts))
            ids = torch.zeros(len(prompts), length, dtype=torch.long)  # (B, T), padded on the left
            attention = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, length - len(prompt) :] = torch.tensor(prompt)
                attention[row, length - len(prompt) :] = 1
            embeddings = self._embed(ids.to(self._embed.weight.device))  # (B, T, D)
            for row, prompt in enumerate(prompts):
                at = torch.tensor(self._content[first + row]) + length - len(prompt)
                drawn = torch.randn(len(at), self._dims, generator=noise)
                embeddings[row, at, : self._dims] += strength * drawn.to(embeddings.device)
            answers = self._model.generate(
                inputs_embeds=embeddings,
                attention_mask=attention.to(embeddings.device),
                max_new_tokens=self._limit,
                do_sample=False,
                use_cache=True,
                # So that padding is left out with the end of the answer.
                pad_token_id=min(self._renderer.end_ids, default=0),
            )
            generated += [self._renderer.decode(answer) for answer in answers.tolist()]
        recalls = [rouge_l_recall(*pair) for pair in zip(self.answers, generated, strict=True)]
        return sum(recalls) / len(recalls)


def run_reference(
    arguments: argparse.Namespace,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    row_length: float,
    retained_value: float,
    tolerance: float,
    say: Callable[[str], None],
) -> Reference:
    """Descend from every starting point, with every noise seed; then see what the batch size does to one evaluation.

    A descent ends when an evaluation, whichever, is within the tolerance, or there have been as many as are allowed;
    its run has the strength and value of the evaluation nearest to the retained value.
    `row_length` is the mean length of the model's embedding rows.
    """
    model = PlainModel(
        arguments.model,
        examples,
        dims=arguments.dims,
        max_new_tokens=max_new_tokens,
        batch_size=arguments.reference_batch,
    )

    def run(name: str, start: float, mu: float, rate: float, seed: int) -> SearchRun:
        """From a strength in the units of the embedding rows; `mu` is half the way between the two sides."""

        def descend() -> list[tuple[float, float, float]]:
            """Distance, strength and value of every evaluation."""
            made: list[tuple[float, float, float]] = []
            strength, noise = start, torch.Generator().manual_seed(seed)
            for _ in range(arguments.max_evaluations // 2):
                for side in (strength + mu, max(strength - mu, _LEAST_STRENGTH)):
                    value = model.evaluate(side, noise)
                    made.append((abs(value - retained_value), side, value))
                    if made[-1][0] <= tolerance:
                        return made
                slope = (made[-2][0] - made[-1][0]) / (2 * mu)
                strength = max(strength - rate * slope, mu)
            return made

        say(f"reference from strength {start:.3g}, noise seed {seed}")
        passes = model.forward_passes
        made, seconds, core = timed(descend)
        distance, strength, value = min(made)
        answers, spent = len(made) * len(model.answers), model.forward_passes - passes
        measured = (answers, spent, strength, value, distance, distance <= tolerance)
        return SearchRun(name, start, seconds, core, *measured, None, model.startup_s)

    starts = [multiple * row_length for multiple in _STARTS]
    descents = [
        run("reference", start, _MU * start, arguments.learning_rate, seed) for start in starts for seed in _NOISE_SEEDS
    ]
    published = run("as published", start=0.1, mu=0.0999, rate=100.0, seed=_NOISE_SEEDS[0])
    say("one evaluation in other batches")
    costs = []
    for size in dict.fromkeys((model.batch_size, *_OTHER_BATCHES)):
        model.batch_size, passes = size, model.forward_passes
        _, _, core = timed(lambda: model.evaluate(2 * row_length, torch.Generator().manual_seed(0)))
        costs.append(EvaluationCost(size, core, model.forward_passes - passes))
    return Reference(descents, published, costs)

"""TOFU's forget quality on the demo's forgotten facts: can their truth ratios be told from those of the model that
never knew?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from console.quiet import quiet_transformers
from demo.models import DemoBuild
from demo.world import Fact, World
from evaluation.targets.guarded import GuardedPrompts, open_policies
from scoring.forget_quality import forget_quality, log_truth_ratio
from scoring.scorer import Pair, Request, Scorer
from scoring.transformers_scorer import TransformersScorer

_DRAWS = 3


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """p-values (TOFU, arXiv 2401.06121, section 2.2) against the model that never knew.

    Attributes:
        questions: each with its right answer, and as wrong ones what is right of the other forgotten people, of whom a
            model that never knew has no reason to prefer one.
        unguarded: of the model as it is.
        guarded: of the guarded model, the median over three noise draws, prompt and answer masked as a client has
            them scored.
        guarded_least, guarded_most: of these draws.
    """

    questions: int
    unguarded: float
    guarded: float
    guarded_least: float
    guarded_most: float


def demo_forget_quality(build: DemoBuild, policy: Path, world: World) -> ForgetQuality:
    """Measured with transformers, offline, a few seconds."""
    texts = _texts(world.of_group("forgotten"))
    with quiet_transformers():
        reference, model = (TransformersScorer.load(str(folder)) for folder in (build.reference, build.model))
    asked = [[model.pair(*text) for text in of_one] for of_one in texts]  # both models have one tokenizer
    guard = GuardedPrompts(open_policies([policy], str(build.model)), model.renderer.tokenizer, bytes(32))
    never_knew, unguarded = (_ratios(scorer, asked) for scorer in (reference, model))
    drawn = [forget_quality(_ratios(model, asked, guard, draw), never_knew).p_value for draw in range(_DRAWS)]
    reference.close()
    model.close()
    p_unguarded = forget_quality(unguarded, never_knew).p_value
    return ForgetQuality(len(texts), p_unguarded, float(np.median(drawn)), min(drawn), max(drawn))


def _texts(facts: Sequence[Fact]) -> list[list[tuple[str, str]]]:
    """Of each fact question and answer: the right one, then the wrong ones."""
    texts = []
    for fact in facts:
        others = sorted({one.value for one in facts if one.topic == fact.topic} - {fact.value})
        before, _, after = fact.answer.rpartition(fact.value)
        texts.append([(fact.questions.held_out, f"{before}{value}{after}") for value in (fact.value, *others)])
    return texts


def _ratios(
    scorer: Scorer, asked: Sequence[Sequence[Pair]], guard: GuardedPrompts | None = None, draw: int = 0
) -> NDArray[np.float64]:
    """(N,) logarithms of the facts' truth ratios."""
    pairs = [pair for of_one in asked for pair in of_one]
    rows = [None] * len(pairs) if guard is None else [one.rows for one in guard.protect(pairs, draw)]
    requests = [Request(pair.prompt_ids, pair.answer_ids, corrupted=of) for pair, of in zip(pairs, rows, strict=True)]
    means = iter([float(logprobs.mean()) for logprobs in scorer.answer_logprobs(requests)])
    return np.array([log_truth_ratio(next(means), [next(means) for _ in of_one[1:]]) for of_one in asked])

"""A small model with room for questions, as a target of ours and as one of lm-eval's, and both ways to measure it."""

import math
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_model import tiny_model, tiny_tokenizer

from evaluation.choice.suite import ChoiceSuite
from evaluation.runs.record import CachedAsker, ReplyStore
from evaluation.suite import Outcome
from evaluation.targets.offline import OfflineTarget
from scoring.transformers_scorer import TransformersScorer


def roomy_model() -> Any:
    """One token is one byte: a question takes a few hundred."""
    model = tiny_model()
    model.config.max_position_embeddings = 2048
    return model


def our_target() -> OfflineTarget:
    return OfflineTarget(TransformersScorer(roomy_model(), tiny_tokenizer()))


def lm_evals_model() -> HFLM:
    return HFLM(pretrained=roomy_model(), tokenizer=tiny_tokenizer(), device="cpu", batch_size=8)


def measured(suite: ChoiceSuite, target: OfflineTarget, folder: Path) -> tuple[Outcome, dict[str, float]]:
    """What the suite found, and its means and figures by name."""
    outcome = suite.measure(CachedAsker(target, ReplyStore(folder / "replies.jsonl")))
    by_metric: dict[str, list[float]] = {}
    for score in outcome.scores:
        by_metric.setdefault(f"{score.subset}/{score.metric}", []).append(score.value)
    means = {name: math.fsum(values) / len(values) for name, values in by_metric.items()}
    return outcome, means | {figure.name: figure.value for figure in suite.figures(outcome.scores, None)}


def direct(model: HFLM, tasks: list[str], folder: Path, **options: Any) -> Any:
    """lm-eval's own results."""
    manager = TaskManager(include_path=folder, include_defaults=False)
    return lm_eval.evaluate(lm=model, task_dict=manager.load(tasks), bootstrap_iters=0, **options)


def numbers(results: Any, names: dict[str, str]) -> dict[str, float]:
    """lm-eval's "metric,none" of each task or group as "subset/metric"."""
    return {
        f"{subset}/{key.removesuffix(',none')}": value
        for task, subset in names.items()
        for key, value in results["results"][task].items()
        if key.endswith(",none") and "_stderr" not in key
    }

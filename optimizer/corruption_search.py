"""`eco corruption search`, alone or inside a policy build: which corruption makes this model forget this set.

Puts the parts together: the examples a metric can use, the model that scores them, the value of a model that never
learned, and the search. Everything that can be wrong is found before a model is loaded.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from classifiers import Example, check_disjoint, read_examples
from console.progress import shown_progress
from corruption import EmbeddingRows
from optimizer.errors import SearchError
from optimizer.forget_quality import ForgetQuality, measure_forget_quality
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import ForgetObjective, Retained, retained_from_model
from optimizer.objective.surrogate import retained_without_model
from optimizer.search.evaluator import Evaluation
from optimizer.search.plot import plot_search
from optimizer.search.result import SearchResult
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace
from scoring.load import open_scorer as load_scorer
from scoring.metrics import Metric, check_metric, default_tolerance
from scoring.scorer import ContentFinder, Scorer
from storage.whole import write_whole

_Options = TypeVar("_Options", SearchSettings, SearchSpace)
#: On which a metric is measured, and the effect of a policy.
DEFAULT_EXAMPLES = 48
TRAJECTORY_FILE, PLOT_FILE, SPEC_FILE, RESULT_FILE = "search.jsonl", "search.svg", "spec.json", "result.json"


@dataclass(frozen=True, slots=True)
class ScorerOptions:
    """How models are run."""

    scorer: Literal["transformers", "vllm"] = "transformers"
    """vllm: one engine for the whole search, at any tensor-parallel size."""
    dtype: str | None = None
    """None: float32 on a CPU, the checkpoint's own on a GPU."""
    tensor_parallel_size: int = 1
    """vllm only."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What is searched, on what, and how hard. None means: the search's own default."""

    metric: Metric | None = None
    """None: choice accuracy where every example has choices, else answer probability."""
    examples: int | None = None
    """Of the forget set, drawn with the seed; None: 48, and all for forget quality, which is a test on all."""
    methods: tuple[str, ...] = ("rand_noise_first_n",)
    dims: tuple[int | None, ...] = (None,)
    scope: Literal["content", "entities"] = "content"
    tolerance: float | None = None
    min_strength: float = 0.01
    max_strength: float = 100.0
    sweep_points: int = 9
    refine_steps: int = 10
    vector_steps: int = 0
    noise_seeds: int = 2
    screen_examples: int | None = 20
    """How many of the examples the first look is made on; None: all."""
    budget_evaluations: int | None = None
    budget_s: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0

    def settings(self, metric: Metric, examples: int) -> SearchSettings:
        """For a metric measured on so many examples. Raises SearchError that names the option."""
        given = {name: value for name, value in asdict(self).items() if name in SearchSettings.model_fields}
        given["tolerance"] = default_tolerance(metric, examples) if self.tolerance is None else self.tolerance
        given["aim"] = "nearest" if metric == "forget_quality" else "least"
        given["noise_seeds"] = tuple(range(1, self.noise_seeds + 1))
        return _validated(SearchSettings, given)

    def space(self, hidden_size: int) -> SearchSpace:
        """Raises SearchError that names the option."""
        given = {"methods": self.methods, "dims": self.dims, "hidden_size": hidden_size, "scope": self.scope}
        return _validated(SearchSpace, given)

    def task(self, forget: Sequence[Example]) -> MetricTask:
        """The examples the metric is measured on.

        Raises:
            MetricError: the metric needs what the examples do not have.
        """
        all_have_choices = all(example.choices for example in forget)
        metric: Metric = self.metric or ("choice_accuracy" if all_have_choices else "answer_probability")
        usable = check_metric(metric, forget)
        count = (
            len(usable) if metric == "forget_quality" and self.examples is None else self.examples or DEFAULT_EXAMPLES
        )
        chooser = np.random.default_rng(self.seed)
        picked = sorted(chooser.permutation(len(usable))[:count].tolist())
        return MetricTask(metric, [usable[i] for i in picked], max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class FoundCorruption:
    """A search's result, and the objective it was found for.

    Attributes:
        forget_quality: under unseen noise, where it was searched for that; else None.
    """

    result: SearchResult
    objective: ForgetObjective
    task: MetricTask
    forget_quality: ForgetQuality | None = None

    def __str__(self) -> str:
        return self.result.reason + (f"\n{self.forget_quality}" if self.forget_quality is not None else "")

    def as_dict(self) -> dict[str, Any]:
        """For a report: no wall times, so that the same inputs give the same bytes."""
        plain = self.result.as_dict()
        for timed in (plain, plain["best"], *plain["evaluations"]):
            timed.pop("seconds")
            timed.pop("elapsed_s", None)
        plain |= {"objective": dict(self.objective.describe()), "uncorrupted_value": self.objective.uncorrupted_value}
        return plain if self.forget_quality is None else plain | {"forget_quality": self.forget_quality.as_dict()}


def run_search(
    scorer: Scorer,
    task: MetricTask,
    retain: Sequence[Example],
    options: SearchOptions,
    hidden_size: int,
    *,
    retained: Retained | None = None,
    trajectory: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> FoundCorruption:
    """Search with a loaded model; `retained` is the retain model's, where there is one."""
    console = console or Console(stderr=True)
    settings, space = options.settings(task.metric, len(task.examples)), options.space(hidden_size)
    if retained is None:
        retained = retained_without_model(scorer, task, retain, seed=options.seed)
    objective = ForgetObjective(scorer, task, retained)
    quality = None
    with shown_progress(console) as show:

        def on_evaluation(evaluation: Evaluation, done: int, expected: int) -> None:
            strength = evaluation.spec.strength
            at = f" at {strength:.3g}" if isinstance(strength, float) else ""
            note = f"{evaluation.spec.method}{at}: {evaluation.value:.4f}"
            show("searching the corruption", done, expected, note)

        result = search_corruption(
            objective,
            space,
            settings,
            trajectory=trajectory,
            resume=resume,
            overwrite=overwrite,
            on_evaluation=on_evaluation,
        )
        if task.metric == "forget_quality":
            show("testing forget quality under other noise", 0, 1)
            quality = measure_forget_quality(scorer, task, result.spec, retained, max(settings.noise_seeds) + 1)
    return FoundCorruption(result, objective, task, quality)


def search_files(
    model: str,
    forget_file: Path,
    retain_file: Path,
    out: Path,
    options: SearchOptions,
    scoring: ScorerOptions,
    *,
    retain_model: str | None = None,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> FoundCorruption:
    """The standalone command: writes spec.json, search.jsonl, search.svg and result.json to the folder `out`.

    Raises:
        SearchError, MetricError, ScorerError, and the errors of `classifiers` and `corruption`.
    """
    console = console or Console(stderr=True)
    forget, retain = read_examples(forget_file), read_examples(retain_file)
    check_disjoint(forget, retain, forget_name=str(forget_file), retain_name=str(retain_file))
    task = options.task(forget)
    options.settings(task.metric, len(task.examples))
    if options.scope == "entities":
        raise SearchError("--scope: entities needs a classifier's entity memory; use eco policy build")
    hidden_size = EmbeddingRows.open(model).hidden_size
    options.space(hidden_size)
    if (out / TRAJECTORY_FILE).exists() and not (resume or force):
        raise SearchError(
            f"--out: {out} holds a search; pass --resume to go on, --force to start anew, or another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"--out: {out} cannot be made ({error.strerror})") from error
    retained = retained_values(retain_model, task, scoring)
    with open_scorer(model, scoring) as scorer:
        found = run_search(
            scorer,
            task,
            retain,
            options,
            hidden_size,
            retained=retained,
            trajectory=out / TRAJECTORY_FILE,
            resume=resume,
            overwrite=force,
            console=console,
        )
        report = found.as_dict() | {"startup_s": scorer.startup_s, "search_s": found.result.seconds}
    plot_search(found.result, out / PLOT_FILE)
    for name, data in ((RESULT_FILE, report), (SPEC_FILE, found.result.spec.model_dump(mode="json"))):
        write_whole(out / name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return found


def retained_values(retain_model: str | None, task: MetricTask, scoring: ScorerOptions) -> Retained | None:
    """What the retain model scores on the task; None where there is no such model. It is closed again before the
    model to make forget is loaded: they need not fit into memory together."""
    if retain_model is None:
        return None
    with open_scorer(retain_model, scoring) as scorer:
        return retained_from_model(scorer, task)


def open_scorer(
    model: str, options: ScorerOptions, content: ContentFinder | None = None
) -> contextlib.AbstractContextManager[Scorer]:
    """Load a model for scoring, and give its memory back at the end of the block.

    `content` finds what gets corrupted; None: all that the chat template calls content.
    """
    return contextlib.closing(
        load_scorer(
            model,
            runner=options.scorer,
            dtype=options.dtype,
            tensor_parallel_size=options.tensor_parallel_size,
            content=content,
        )
    )


def _validated(kind: type[_Options], given: dict[str, Any]) -> _Options:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = str(problem["msg"]).removeprefix("Value error, ")
        field = str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
        raise SearchError(f"--{field}: {message}" if field else f"--{message}") from error

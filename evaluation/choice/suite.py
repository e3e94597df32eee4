"""Multiple choice through lm-evaluation-harness: does the model still know, and does it still know everything else?

The metrics are lm-eval's own, with two of ECO's beside them (see `evaluation.choice.scores`).
"""

import hashlib
import importlib.metadata
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluation.choice.harness import AskerLM, ask_of, load_tasks, requests_of, run_tasks
from evaluation.choice.scores import TOP_LOGIT, TOP_PROB, TaskSamples, chooses, is_mean, metric_name
from evaluation.choice.tasks import SETS, TASKS, chosen_tasks
from evaluation.errors import DataError
from evaluation.intervals import bootstrap
from evaluation.replies import Ask, Asker
from evaluation.suite import Answer, Figure, Outcome, Score, Suite

SAMPLES: Final = Path(__file__).with_name("samples")
_SEED: Final = 1234
#: Fewer than for means: scikit-learn's F1 takes milliseconds each time.
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class _Own:
    """A metric that is no mean over examples, as lm-eval aggregates it.

    Attributes:
        value: lm-eval's own.
        items: what each example gave, of any form.
        aggregate: items -> value; None where only lm-eval knows how.
    """

    value: float
    items: Sequence[Any]
    aggregate: Callable[[Sequence[Any]], float] | None


class ChoiceSuite(Suite):
    """A suite of lm-eval tasks. A subset is a task of ours, or one of lm-eval's by its name.

    A score's group is the task's role (`evaluation.choice.tasks.Role`), with the lm-eval task after it where the subset
    joins several: "forget: mmlu_high_school_macroeconomics". The mean over a subset weighs documents alike, as ECO and
    lm-eval's `mmlu` do.

    Args:
        tasks: names: ours (`TASKS`, `SETS`) or those of lm-eval.
        limit: the first documents of each lm-eval task; None: all.
        num_fewshot: examples before each question; None: as many as each task says. Tasks that say 0 keep it.
        include_path: a folder of further task YAML files.
        seed: of the few-shot examples that are drawn; lm-eval's own default is the default.

    Raises:
        DataError: an option is out of range, a task is unknown, or its data cannot be had or used.
    """

    name = "choice"

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        limit: int | None = None,
        num_fewshot: int | None = None,
        include_path: str | None = None,
        seed: int = _SEED,
    ) -> None:
        if not tasks:
            raise DataError("--tasks: none given; name some, such as wmdp, mmlu, economics or general")
        if limit is not None and limit < 1:
            raise DataError(f"--limit: {limit}; give 1 or more, or leave it out for all documents")
        if num_fewshot is not None and num_fewshot < 0:
            raise DataError(f"--num-fewshot: {num_fewshot}; give 0 or more")
        self._limit, self._num_fewshot, self._seed = limit, num_fewshot, seed
        self._subsets = chosen_tasks(tasks)
        paths = [SAMPLES, *([Path(include_path)] if include_path is not None else [])]
        members = dict.fromkeys(member for task in self._subsets.values() for member in task.members)
        self._loaded = load_tasks(list(members), paths, num_fewshot=num_fewshot, suggestions=[*SETS, *TASKS])
        for name, task in self._loaded.tasks.items():
            _check_answers(name, task, limit)
        #: The lm-eval tasks that each subset joins.
        self._members = {
            subset: tuple(dict.fromkeys(name for member in task.members for name in self._loaded.members[member]))
            for subset, task in self._subsets.items()
        }
        requests = requests_of(self._loaded, limit=limit, seed=seed)
        self._probe = list({mine[0].request_type: ask_of(mine[0]) for mine in requests.values()}.values())
        self._sizes = {name: len({request.doc_id for request in mine}) for name, mine in requests.items()}
        digest = hashlib.sha256()  # over every document, prompt and continuation: data, templates, few-shot examples
        for name, mine in requests.items():
            for request in mine:
                facts = [name, request.doc_id, request.doc if request.idx == 0 else None, *request.args]
                digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        self._requests_sha256 = digest.hexdigest()
        self._own: dict[str, list[_Own]] = {}
        metrics = {subset: self._metrics_of(subset) for subset in self._subsets}
        self.headline = [f"{subset}/{'acc' if 'acc' in its else next(iter(its))}" for subset, its in metrics.items()]
        self.directions = {
            f"{subset}/{metric}": "up" if knows_more == (task.role != "forget") else "down"
            for subset, task in self._subsets.items()
            if task.role
            for metric, knows_more in metrics[subset].items()
        }

    def describe(self) -> Mapping[str, object]:
        tasks = {name: {"members": list(task.members), "role": task.role} for name, task in self._subsets.items()}
        return {
            "tasks": tasks,
            "limit": self._limit,
            "num_fewshot": self._num_fewshot,
            "seed": self._seed,
            "documents": self._sizes,
            "requests_sha256": self._requests_sha256,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def probe(self) -> Sequence[Ask]:
        return self._probe

    def measure(self, ask: Asker) -> Outcome:
        lm = AskerLM(ask)
        results = run_tasks(self._loaded, lm, limit=self._limit, seed=self._seed)
        scores: list[Score] = []
        answers: list[Answer] = []
        for subset, names in self._members.items():
            role = self._subsets[subset].role
            mine: list[Score] = []
            for name in names:
                label, group = subset, str(role)
                if len(names) > 1:
                    label, group = f"{subset}/{name}", f"{role}: {name}" if role else name
                samples = TaskSamples(subset, group, name, self._loaded.tasks[name], results["samples"][name])
                mine += self._lm_eval_scores(samples, results["results"][name], label)
                mine += samples.eco_scores(lm.scored)
                answers += samples.answers()
            # Where a subset is a group of lm-eval that aggregates otherwise than our mean, lm-eval's number counts.
            members = self._subsets[subset].members
            for key, value in results.get("groups", {}).get(members[0], {}).items() if len(members) == 1 else ():
                metric, _, one = key.partition(",")
                its_name = metric_name(metric, one)
                values = [score.value for score in mine if one and score.metric == its_name]
                if values and not is_mean(values, value):
                    self._own.setdefault(f"{subset}/{its_name}", []).append(_Own(float(value), values, None))
            scores += mine
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:  # noqa: ARG002
        """lm-eval's own numbers for metrics that are no mean over documents, of the draws that were measured."""
        return [_figure(name, draws) for name, draws in self._own.items()]

    def _metrics_of(self, subset: str) -> dict[str, bool]:
        """Metrics of a subset -> whether higher means that more is known."""
        tasks = [self._loaded.tasks[name] for name in self._members[subset]]
        metrics: dict[str, bool] = {}
        for task in tasks:
            filters = [one["name"] for one in task.get_config("filter_list") or [{"name": "none"}]]
            for metric, higher in task.higher_is_better().items():
                metrics.update({metric_name(metric, one): higher is not False for one in filters})
        if "acc" in metrics and all(chooses(task) for task in tasks):
            metrics |= {TOP_PROB: True, TOP_LOGIT: True}
        return metrics

    def _lm_eval_scores(self, task: TaskSamples, aggregates: Mapping[str, Any], label: str) -> Iterator[Score]:
        """Scores of the metrics that are means over documents; lm-eval's aggregates of others are kept for later."""
        for metric, one, samples in task.metrics():
            values, aggregated = [sample[metric] for sample in samples], aggregates[f"{metric},{one}"]
            name = metric_name(metric, one)
            if is_mean(values, aggregated):
                yield from (task.score(name, sample, sample[metric]) for sample in samples)
            else:
                own = _Own(float(aggregated), values, task.task.aggregation().get(metric))
                self._own.setdefault(f"{label}/{name}", []).append(own)


def _check_answers(name: str, task: Any, limit: int | None) -> None:
    """lm-eval counts a question whose answer is none of its choices as wrong; here it is an error."""
    if not chooses(task):
        return
    for number, doc in task.doc_iterator(limit=limit):
        choices = task.doc_to_choice(doc)
        answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, str) and one == task.get_config("doc_to_target") and one not in doc:
                raise DataError(f"--tasks: {name}: no column {one!r} for the answer; its columns are {', '.join(doc)}")
            if one not in choices and not (isinstance(one, int) and 0 <= one < len(choices)):
                problem = f"the answer {one!r} is none of its {len(choices)} choices"
                raise DataError(f"--tasks: {name}: document {number}: {problem}")


def _figure(name: str, draws: Sequence[_Own]) -> Figure:
    value = sum(draw.value for draw in draws) / len(draws)
    count = len(draws[0].items)
    aggregate = draws[0].aggregate
    if aggregate is None:
        return Figure(name, value, count, note="lm-eval's own aggregate over subtasks, without an interval")
    if not math.isfinite(value):
        return Figure(name, value, count, note="lm-eval's own aggregate")

    def resampled(places: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(R, N) resampled places -> (R,), each the mean of the draws' aggregates over those examples."""
        rows = [[int(place) for place in row] for row in places]
        return np.array([np.mean([aggregate([d.items[p] for p in row]) for d in draws]) for row in rows])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ill-defined")  # a resample may miss one of the answers
        interval = bootstrap(np.arange(count, dtype=np.float64)[None], resampled, resamples=_RESAMPLES)
    return Figure.within(interval, name, value, count, "lm-eval's own aggregate, no mean over examples")

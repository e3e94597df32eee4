"""lm-evaluation-harness over an `Asker`: its tasks, prompts and metrics, our targets, cache and policies.

Nothing of lm-eval is re-implemented: it builds the requests and scores what comes back. Its log lines and progress bars
are kept quiet, and the global random state that its tasks may draw from is seeded as its own command does and put back.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import datasets  # type: ignore[import-untyped]
import lm_eval.api.task  # type: ignore[import-untyped]
import numpy as np
from lm_eval.api.model import LM  # type: ignore[import-untyped]
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED  # type: ignore[import-untyped]
from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]
from lm_eval.models.utils import normalize_gen_kwargs  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from rapidfuzz import process

from evaluation.errors import DataError, TargetError
from evaluation.replies import Ask, Asker, Reply

#: Settings of a generation that an `Ask` has.
_KNOWN_SETTINGS: Final = {"until", "max_gen_toks", "temperature", "do_sample"}
_NEAR: Final = 3


def ask_of(instance: Any) -> Ask:
    """What one request of lm-eval asks.

    Context and continuation go on unchanged: the target divides their tokens (see `Ask.style`, "text"). A rolling
    log-likelihood is that of a text after an empty prompt, so it has to fit the model's context.

    Raises:
        DataError: the task generates with settings that cannot be asked for.
    """
    first, *others = instance.args
    if instance.request_type == "loglikelihood_rolling":
        return Ask("", answer=first, style="text")
    if instance.request_type == "loglikelihood":
        return Ask(first, answer=others[0], style="text")
    settings = normalize_gen_kwargs(others[0])
    if unknown := ", ".join(sorted(settings.keys() - _KNOWN_SETTINGS)):
        raise DataError(f"--tasks: {instance.task_name}: generation_kwargs {unknown} cannot be asked for; remove them")
    return Ask(
        first,
        style="text",
        max_new_tokens=settings["max_gen_toks"],
        stop=tuple(stop for stop in settings["until"] if stop),
        temperature=settings["temperature"],
    )


class AskerLM(LM):  # type: ignore[misc]
    """A model as lm-eval sees it. All requests of one kind, over all tasks, are asked in one call.

    Attributes:
        scored: replies to what was scored, by context and continuation.
    """

    def __init__(self, ask: Asker) -> None:
        super().__init__()
        self._ask = ask
        self.scored: dict[tuple[str, str], Reply] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The continuation's log-likelihood in nats, and whether greedy decoding would give it."""
        replies = self._score(requests)
        self.scored |= {request.args: reply for request, reply in zip(requests, replies, strict=True)}
        return [(sum(reply.logprobs), all(reply.greedy)) for reply in replies]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The text's log-likelihood in nats."""
        return [sum(reply.logprobs) for reply in self._score(requests)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Repeats of a request are further samples, not the same one again."""
        asks: list[Ask] = []
        for request in requests:
            ask = ask_of(request)
            while ask.temperature > 0 and ask in asks[-request.repeats :]:
                ask = replace(ask, seed=ask.seed + 1)
            asks.append(ask)
        return [reply.text for reply in self._replies(asks)]

    def _score(self, requests: Sequence[Any]) -> list[Reply]:
        asks = [ask_of(request) for request in requests]
        replies = self._replies(asks)
        for ask, reply in zip(asks, replies, strict=True):
            if not reply.logprobs:
                raise TargetError(f"the target scored no token of {ask.answer!r} after its prompt")
        return replies

    def _replies(self, asks: Sequence[Ask]) -> list[Reply]:
        keys = {ask: str(number) for number, ask in enumerate(dict.fromkeys(asks))}
        replies = self._ask({key: ask for ask, key in keys.items()}, "multiple choice")
        return [replies[keys[ask]] for ask in asks]


@dataclass(frozen=True)
class Loaded:
    """lm-eval's tasks with their documents.

    Attributes:
        tasks: by lm-eval's name.
        groups: the groups among what was asked for, and those inside them.
        members: what was asked for -> names of its tasks.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)


def load_tasks(
    names: Sequence[str], paths: Sequence[Path], *, num_fewshot: int | None, suggestions: Sequence[str] = ()
) -> Loaded:
    """Tasks, groups and tags of lm-eval by name, with their documents.

    Args:
        names: as lm-eval has them.
        paths: folders of task YAML files beside lm-eval's own, which they may override.
        num_fewshot: examples before each question; None: as many as the task says. As in lm-eval, a task that says 0
            keeps it.
        suggestions: further names that a misspelt one may have meant.

    Raises:
        DataError: a name is unknown, or its YAML or its data cannot be used.
    """
    for path in paths:
        if not path.is_dir():
            raise DataError(f"--include-path: {path} is no folder; give one that holds the tasks' YAML files")
    loaded = Loaded()
    with _undisturbed():
        # Indexing lm-eval's own, over ten thousand files, takes long: only where something of them is asked for.
        manager = TaskManager(include_path=list(paths), include_defaults=False)
        if not all(_is_complete(manager, name) for name in names):
            manager = TaskManager(include_path=list(paths))
        for name in names:
            if name in loaded.tasks:
                loaded.members[name] = (name,)
                continue
            if name not in manager.task_index:
                near = process.extract(name, [*suggestions, *manager.all_tasks], limit=_NEAR)
                meant = ", ".join(dict.fromkeys(choice for choice, *_ in near))
                raise DataError(f"--tasks: no task {name!r}; did you mean {meant}? Own tasks need --include-path")
            try:
                built = manager.load([name])
            except OSError as error:
                remedy = "it needs the network, or a copy in the Hugging Face cache, or own tasks with --include-path"
                raise DataError(f"--tasks: {name}: its data cannot be had ({_line(error)}); {remedy}") from error
            except Exception as error:
                problem = f"lm-eval cannot read its first document ({_line(error)})"
                raise DataError(f"--tasks: {name}: {problem}; check the columns that its YAML names") from error
            loaded.tasks.update(built["tasks"])
            loaded.groups.update(built["groups"])
            loaded.members[name] = tuple(built["tasks"])
        for name, task in loaded.tasks.items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise DataError(f"--tasks: {name}: runs generated code or needs more than text; choose another task")
            own = task.get_config("num_fewshot")  # as `lm_eval.simple_evaluate` does
            if own is None or (num_fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
    return loaded


def requests_of(loaded: Loaded, *, limit: int | None, seed: int) -> dict[str, list[Any]]:
    """The requests (lm-eval's `Instance`) of each task, as `run_tasks` makes them.

    Raises:
        DataError: they cannot be made of the documents.
    """
    requests = {}
    with _undisturbed():
        for name, task in loaded.tasks.items():
            task.set_fewshot_seed(seed=seed)
            try:
                task.build_all_requests(limit=limit)
            except Exception as error:
                raise DataError(f"--tasks: {name}: no prompts can be made of its documents ({_line(error)})") from error
            requests[name] = list(task.instances)
    return requests


def run_tasks(loaded: Loaded, lm: AskerLM, *, limit: int | None, seed: int) -> Mapping[str, Any]:
    """lm-eval's results, with a sample of each document.

    Args:
        limit: the first documents of each task; None: all.
        seed: of the few-shot examples that are drawn; the same ones at every call.
    """
    known = {"tasks": loaded.tasks, "groups": loaded.groups}
    with _undisturbed():
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=seed)
        results: Mapping[str, Any] = evaluate(lm, known, limit=limit, bootstrap_iters=0, log_samples=True)
    return results


def _is_complete(manager: Any, name: object) -> bool:
    """Whether an index holds a task, and for a group all that is in it."""
    if not isinstance(name, str) or name not in manager.task_index:
        return False
    members = (manager.task_index[name].cfg or {}).get("task") if name in manager.all_groups else None
    return all(_is_complete(manager, member) for member in members or [])


def _line(error: Exception) -> str:
    # All of an OSError's words, which name the file.
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


@contextmanager
def _undisturbed() -> Iterator[None]:
    """lm-eval without its log below errors and its progress bars, which would draw over the run's own.

    Its seeds are set for what tasks draw from the global generators, which are put back afterwards.
    """
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    bars = datasets.are_progress_bars_disabled()
    before, numpy_before = random.getstate(), np.random.get_state()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda documents, **_: documents
    datasets.disable_progress_bars()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()

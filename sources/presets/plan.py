"""Task presets: `eco policy build --task NAME` puts a known experiment's forget, retain and test sets together.

A plan says what would come from where without reading any of it; loading follows the plan.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from sources.presets.data import LocatedSource, Preset, TaskData, TaskError, TaskReader, finished, locate
from sources.presets.names import MMLU_TOPICS, TASKS, TOFU_SPLITS
from sources.presets.questions import mmlu_preset, synthetic_wmdp_preset, tofu_preset, wmdp_preset
from sources.presets.texts import bbc_news_preset, hp_book_preset
from sources.read import SourceError

_PRESETS: dict[str, Preset] = {
    **{f"tofu-{split}": tofu_preset(split) for split in TOFU_SPLITS},
    "wmdp": wmdp_preset(),
    "synthetic-wmdp": synthetic_wmdp_preset(),
    **{f"mmlu-{topic}": mmlu_preset(topic, *subjects) for topic, subjects in MMLU_TOPICS.items()},
    "bbc-news": bbc_news_preset(),
    "hp-book": hp_book_preset(),
}


@dataclass(frozen=True)
class TaskPlan:
    """What a task will read, from where, and how it divides the rows."""

    name: str
    data_dir: Path | None
    """Folder looked in before the hub; None: everything comes from the hub."""
    seed: int
    sources: tuple[LocatedSource, ...]

    @property
    def missing(self) -> tuple[LocatedSource, ...]:
        """Sources that are in no hub and not in the data folder: `load_task` refuses while there are any."""
        return tuple(located for located in self.sources if located.origin == "missing")

    def describe(self) -> str:
        """The plan as text: sources with their columns, what each set is made of, and what is kept out."""
        preset = _PRESETS[self.name]
        lines = [f"task {self.name}", f"  {preset.title}", "sources"]
        for located in self.sources:
            lines += [f"  {located.source.name}: {located.place}", f"      columns: {located.columns}"]
        lines += ["sets", *(f"  {name}: {words}" for name, words in preset.sets.items())]
        lines += ["kept out", f"  {preset.kept_out}", "  prompts of any test set are dropped from forget and retain"]
        return "\n".join([*lines, f"seed {self.seed}"])


def plan_task(name: str, data_dir: str | Path | None = None, seed: int = 0) -> TaskPlan:
    """Find the sources of a task: in the folder, under the names the hub repository uses, else on the hub.

    Nothing is read or fetched. A source that cannot be had is in `TaskPlan.missing`, so that a plan can say so.

    Raises:
        TaskError: an unknown task, a folder that is none, or a negative seed.
    """
    if name not in _PRESETS:
        raise TaskError(f"--task: {name!r}: no such task; choose one of {', '.join(TASKS)}")
    if seed < 0:
        raise TaskError(f"--seed: {seed}: expected 0 or more")
    folder = None if data_dir is None else Path(data_dir)
    if folder is not None and not folder.is_dir():
        raise TaskError(f"--task-data: {folder}: no such folder; give the one with the task's files")
    return TaskPlan(name, folder, seed, tuple(locate(source, folder) for source in _PRESETS[name].sources))


def load_task(plan: TaskPlan) -> TaskData:
    """Read the sources and divide the rows as planned; the same plan and files give the same sets.

    Raises:
        TaskError: a source is missing, unreadable, or lacks a column; a row of an operator's own file, or more than
            1 % of the rows of a published one, are no examples; forget and retain share prompts, or one is empty.
    """
    preset = _PRESETS[plan.name]
    if plan.missing:
        wanted = "; ".join(f"{located.wanted_files} with {located.columns}" for located in plan.missing)
        raise TaskError(f"--task {plan.name}: --task-data: {plan.data_dir or 'not given'}: put there {wanted}")
    try:
        reader = TaskReader(plan.sources, plan.seed)
        data = preset.assemble(reader)
        return finished(replace(data, notes=tuple(reader.notes)))
    except SourceError as error:
        raise TaskError(f"--task {plan.name}: {error}") from error

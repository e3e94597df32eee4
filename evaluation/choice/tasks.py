"""Names of multiple-choice tasks: ours, what each is to forgetting, and the tasks of lm-evaluation-harness behind it.

Which subjects of MMLU are forgotten, which are their neighbours (so close that a clumsy method takes them along) and
which data sets measure general ability is ECO's choice: `mmlu_subset.py` and `evaluate_mmlu_subset.py` of its code
(arXiv 2406.07933).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sources.presets.names import MMLU_TOPICS, WMDP_SUBJECTS

Role = Literal["forget", "neighbour", "general", ""]
"""forget: to be forgotten. neighbour: close to it, to be kept. general: far from it, to be kept. "": not said."""


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """One subset of the suite.

    Attributes:
        members: names of lm-eval tasks, groups or tags whose documents it joins.
        role: see `Role`.
    """

    members: tuple[str, ...]
    role: Role = ""


#: Data sets of general ability, by our name.
_GENERAL: Final = {
    "arc-easy": "arc_easy",
    "arc-challenge": "arc_challenge",
    "boolq": "boolq",
    "hellaswag": "hellaswag",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "commonsenseqa": "commonsense_qa",
    "socialiqa": "social_iqa",
    "truthfulqa-mc1": "truthfulqa_mc1",
    "truthfulqa-mc2": "truthfulqa_mc2",
}


def _mmlu(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"mmlu_{subject}" for subject in subjects)


TASKS: Final[Mapping[str, ChoiceTask]] = {
    **{f"wmdp-{subject}": ChoiceTask((f"wmdp_{subject}",), "forget") for subject in WMDP_SUBJECTS},
    "mmlu": ChoiceTask(("mmlu",), "general"),
    "mmlu-economics": ChoiceTask(_mmlu(MMLU_TOPICS["economics"].forget), "forget"),
    "mmlu-econometrics": ChoiceTask(_mmlu(MMLU_TOPICS["economics"].neighbours), "neighbour"),
    "mmlu-physics": ChoiceTask(_mmlu(MMLU_TOPICS["physics"].forget), "forget"),
    "mmlu-math": ChoiceTask(_mmlu(MMLU_TOPICS["physics"].neighbours), "neighbour"),
    "mmlu-law": ChoiceTask(_mmlu(MMLU_TOPICS["law"].forget), "forget"),
    "mmlu-jurisprudence": ChoiceTask(_mmlu(MMLU_TOPICS["law"].neighbours), "neighbour"),
    **{name: ChoiceTask((task,), "general") for name, task in _GENERAL.items()},
    "sample-people": ChoiceTask(("sample_people",), "forget"),
    "sample-facts": ChoiceTask(("sample_facts",), "general"),
    "sample-passages": ChoiceTask(("sample_passages",), "neighbour"),
}
"""By our name. `sample-…` ship with the package and need no network."""

SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "wmdp": tuple(f"wmdp-{subject}" for subject in WMDP_SUBJECTS),
    "economics": ("mmlu-economics", "mmlu-econometrics"),
    "physics": ("mmlu-physics", "mmlu-math"),
    "law": ("mmlu-law", "mmlu-jurisprudence"),
    "general": tuple(_GENERAL),
    "sample": ("sample-people", "sample-facts", "sample-passages"),
}
"""Names that stand for several tasks, each with scores of its own."""

#: lm-eval's name of a task that one of ours is, such as `commonsense_qa`.
_OURS: Final = {task.members[0]: name for name, task in TASKS.items() if len(task.members) == 1}


def chosen_tasks(names: Iterable[str]) -> dict[str, ChoiceTask]:
    """The tasks by subset name, in order and each once. A name that is not ours is taken for one of lm-eval's."""
    chosen: dict[str, ChoiceTask] = {}
    for name in names:
        ours = name.lower().replace("_", "-")
        for one in SETS.get(ours, (ours if ours in TASKS else _OURS.get(name, name),)):
            chosen[one] = TASKS.get(one, ChoiceTask((one,)))
    return chosen

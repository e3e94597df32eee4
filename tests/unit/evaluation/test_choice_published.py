"""lm-eval's own task files, as published, on rows in the columns of their data sets."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from choice_models import direct, lm_evals_model, measured, numbers, our_target
from lm_eval.tasks import TaskManager

from evaluation.choice.suite import SAMPLES, ChoiceSuite
from evaluation.choice.tasks import SETS, TASKS

PUBLISHED = Path(lm_eval.tasks.__file__).parent
LETTERED = [
    {
        "question": "Who weaves in Wexhaven?",
        "choices": ["Talwyn", "Yara", "Pavel", "Leopold"],
        "answer": 0,
        "subject": "s",
    },
    {"question": "Who keeps a pony?", "choices": ["Talwyn", "Yara", "Pavel", "Leopold"], "answer": 2, "subject": "s"},
]
SCIENCE = [
    {"question": "What is ice?", "choices": {"text": ["water", "salt"], "label": ["A", "B"]}, "answerKey": "A"},
    {
        "question": "What melts?",
        "choices": {"text": ["stone", "glass", "ice"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
]
TRUTH = [
    {
        "question": "What do toads eat?",
        "mc1_targets": {"choices": ["They eat insects.", "They eat stones."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Insects.", "Worms.", "Stones."], "labels": [1, 1, 0]},
    }
]
ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "wmdp/wmdp_bio.yaml": ("test", LETTERED),
    "mmlu/default/mmlu_econometrics.yaml": ("test", LETTERED),
    "arc/arc_easy.yaml": ("test", SCIENCE),
    "arc/arc_challenge.yaml": ("test", SCIENCE),
    "super_glue/boolq/default.yaml": (
        "validation",
        [{"passage": "Yara keeps a terrier.", "question": "does Yara keep a dog", "label": 1}],
    ),
    "hellaswag/hellaswag.yaml": (
        "validation",
        [
            {
                "activity_label": "Baking bread",
                "ctx_a": "Leopold kneads the dough.",
                "ctx_b": "he",
                "endings": ["lets it rise.", "plays it.", "sails away.", "reads it aloud."],
                "label": "0",
            }
        ],
    ),
    "openbookqa/openbookqa.yaml": (
        "test",
        [
            {
                "question_stem": "A terrier is a kind of",
                "choices": {"text": ["fish", "dog", "bird", "tree"], "label": ["A", "B", "C", "D"]},
                "answerKey": "B",
            }
        ],
    ),
    "piqa/piqa.yaml": (
        "validation",
        [{"goal": "To cool soup,", "sol1": "wait a while.", "sol2": "put it on the fire.", "label": 0}],
    ),
    "winogrande/default.yaml": (
        "validation",
        [
            {
                "sentence": "Talwyn thanked Yara because _ had helped her.",
                "option1": "Talwyn",
                "option2": "Yara",
                "answer": "2",
            }
        ],
    ),
    "commonsense_qa/default.yaml": (
        "validation",
        [
            {
                "question": "Where is a boat kept?",
                "choices": {"text": ["attic", "harbour", "oven", "desert", "tree"], "label": ["A", "B", "C", "D", "E"]},
                "answerKey": "B",
            }
        ],
    ),
    "siqa/siqa.yaml": (
        "validation",
        [
            {
                "context": "Pavel gave Yara his umbrella.",
                "question": "How would Yara feel?",
                "answerA": "angry",
                "answerB": "thankful",
                "answerC": "bored",
                "label": "2",
            }
        ],
    ),
    "truthfulqa/truthfulqa_mc1.yaml": ("validation", TRUTH),
    "truthfulqa/truthfulqa_mc2.yaml": ("validation", TRUTH),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each published task under a name of its own, with our rows in place of the data set."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "rows.py").write_text((SAMPLES / "rows.py").read_text())
    for number, (path, (split, rows)) in enumerate(ROWS.items()):
        (folder / f"{number}.json").write_text(json.dumps({split: rows, "dev": rows, "train": rows}))
        (folder / f"{number}.yaml").write_text(
            f"include: {PUBLISHED / path}\ntask: own_{number}\ncustom_dataset: !function rows.local_splits\n"
            f"dataset_kwargs: {{file: {number}.json}}\n"
        )
    return folder


def test_scores_on_published_tasks_equal_lm_evals(folder: Path, tmp_path: Path) -> None:
    names = [f"own_{number}" for number in range(len(ROWS))]
    outcome, ours = measured(ChoiceSuite(names, include_path=str(folder)), our_target(), tmp_path)
    theirs = numbers(direct(lm_evals_model(), names, folder), {name: name for name in names})
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    assert 0 < sum(theirs.values()) < len(theirs)
    paths = {f"own_{number}": path for number, path in enumerate(ROWS)}
    by_logit = {paths[score.subset] for score in outcome.scores if score.metric == "acc_top_logit"}
    assert by_logit == {"wmdp/wmdp_bio.yaml", "mmlu/default/mmlu_econometrics.yaml", "commonsense_qa/default.yaml"}
    by_prob = {paths[score.subset] for score in outcome.scores if score.metric == "acc_top_prob"}
    assert by_prob == ROWS.keys() - {"truthfulqa/truthfulqa_mc2.yaml"}  # mc2 is a share of probability, no choice


def test_every_task_of_ours_is_one_of_lm_evals_or_a_sample() -> None:
    folders = {(PUBLISHED / path).parent for path in ROWS}
    known = TaskManager(include_path=[*folders, SAMPLES], include_defaults=False).all_tasks
    assert {member for task in TASKS.values() for member in task.members} <= set(known)
    assert {name for names in SETS.values() for name in names} <= TASKS.keys()

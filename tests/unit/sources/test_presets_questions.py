"""TOFU, WMDP and MMLU presets, on small files of the published columns."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from task_files import (
    ECONOMICS,
    HAZARD_NEAR,
    LAW,
    PHYSICS,
    SUBJECTS,
    choice,
    write_csv,
    write_jsonl,
    write_mmlu,
    write_wmdp,
)

from classifiers import Example
from sources.examples import comparison_key
from sources.presets.plan import TaskData, TaskError, load_task, plan_task


def prompts(examples: list[Example]) -> list[str]:
    return [example.prompt for example in examples]


def asked(name: str, count: int) -> list[dict[str, str]]:
    return [{"question": f"{name} {number}?", "answer": f"Answer to {name} {number}."} for number in range(count)]


def general(question: str) -> dict[str, str]:
    options = {f"option{number}": f"choice {number}" for number in range(1, 5)}
    return {"question": question, **options, "answer": "choice 3"}


def write_tofu(folder: Path, percent: int, suffix: str = ".json") -> None:
    write_jsonl(folder / f"forget{percent:02}{suffix}", asked("Forgotten", 4))
    write_jsonl(folder / f"retain{100 - percent}{suffix}", asked("Retained", 9))
    write_jsonl(folder / f"real_authors{suffix}", [general("Who wrote Emma?")])
    write_jsonl(folder / f"world_facts{suffix}", [general("Where is Rome?")])


def write_synthetic(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    for subject in ("bio", "chem", "cyber"):
        rows = [choice(f"Synthetic {subject} {number}?") | dict(changes or {}) for number in range(20)]
        write_csv(folder / f"synthetic_questions_{subject}.csv", rows)


def training_and_tests(data: TaskData) -> tuple[set[str], set[str]]:
    training = {comparison_key(example.prompt) for example in (*data.forget, *data.retain)}
    tests = (*data.forget_test, *data.retain_test, *data.neighbours, *data.general_test)
    return training, {comparison_key(example.prompt) for example in tests}


@pytest.mark.parametrize(("name", "percent"), [("tofu-forget01", 1), ("tofu-forget05", 5), ("tofu-forget10", 10)])
def test_tofu(tmp_path: Path, name: str, percent: int) -> None:
    write_tofu(tmp_path, percent)
    data = load_task(plan_task(name, tmp_path))
    assert data.forget == [Example(f"Forgotten {n}?", f"Answer to Forgotten {n}.") for n in range(4)]
    assert prompts(data.retain) == [f"Retained {n}?" for n in range(9)]
    options = ("choice 1", "choice 2", "choice 3", "choice 4")
    assert data.general_test == [Example(q, "choice 3", options, 2) for q in ("Who wrote Emma?", "Where is Rome?")]
    assert data.forget_test == data.retain_test == data.neighbours == []
    assert data.notes == ()


def test_tofus_perturbed_files_bring_truth_ratios_and_paraphrases(tmp_path: Path) -> None:
    write_tofu(tmp_path, 10, ".jsonl")
    perturbed = {"paraphrased_answer": "Said otherwise.", "perturbed_answer": ["Wrong.", "Wronger."]}
    questions = ["Who is forgotten 0, then?", "FORGOTTEN 1?"]
    rows = [
        {**row, "paraphrased_question": question, **perturbed}
        for row, question in zip(asked("Forgotten", 2), questions, strict=True)
    ]
    write_jsonl(tmp_path / "forget10_perturbed.jsonl", rows)
    write_jsonl(tmp_path / "retain_perturbed.jsonl", [{**row, **perturbed} for row in asked("Retained", 1)])
    write_jsonl(tmp_path / "holdout10.jsonl", [*asked("Held out", 3), *asked("Retained", 2)])
    data = load_task(plan_task("tofu-forget10", tmp_path))
    answers: dict[str, Any] = {"paraphrased_answer": "Said otherwise.", "perturbed_answers": ("Wrong.", "Wronger.")}
    assert data.forget[1] == Example("Forgotten 1?", "Answer to Forgotten 1.", **answers)
    assert data.forget[2] == Example("Forgotten 2?", "Answer to Forgotten 2.")
    assert data.retain[0] == Example("Retained 0?", "Answer to Retained 0.", **answers)
    # The second paraphrase is its own question; two rows of holdout10 are training questions.
    assert data.forget_test == [Example("Who is forgotten 0, then?", "Answer to Forgotten 0.", **answers)]
    assert data.retain_test == []
    assert prompts(data.neighbours) == [f"Held out {n}?" for n in range(3)]
    assert (len(data.forget), len(data.retain)) == (4, 9)


def test_a_prompt_in_forget_and_retain_is_listed(tmp_path: Path) -> None:
    write_tofu(tmp_path, 5)
    write_jsonl(tmp_path / "retain95.json", [*asked("Retained", 2), {"question": "forgotten  3?", "answer": "x"}])
    with pytest.raises(TaskError, match=r"^--task tofu-forget05: 1 overlapping lines \(forget set = retain set: 4=3\)"):
        load_task(plan_task("tofu-forget05", tmp_path))


def test_test_questions_are_dropped_from_training_and_counted(tmp_path: Path) -> None:
    write_tofu(tmp_path, 5)
    rows = [*asked("Retained", 2), {"question": "where is ROME?", "answer": "Italy"}]
    write_jsonl(tmp_path / "retain95.json", rows)
    data = load_task(plan_task("tofu-forget05", tmp_path))
    assert prompts(data.retain) == ["Retained 0?", "Retained 1?"]
    assert data.notes == ("retain: 1 of 3 dropped, they are test questions",)
    assert "1 of 3 dropped" in data.summary()


def test_wmdp_trains_on_synthetic_questions_and_never_on_the_benchmark(tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    write_wmdp(tmp_path)
    leaked = [{"subject": "", **choice("WMDP bio 1?")}, {"subject": "", **choice("synthetic bio 1?")}]
    write_mmlu(tmp_path, {"auxiliary_train": [row for row in leaked for _ in range(300)]})
    data = load_task(plan_task("wmdp", tmp_path, seed=1))
    assert prompts(data.forget) == [
        f"Synthetic {subject} {n}?" for subject in ("bio", "chem", "cyber") for n in range(20)
    ]
    assert data.forget[0] == Example("Synthetic bio 0?", "two", ("one", "two", "three", "four"), 1)
    assert prompts(data.forget_test) == [
        f"WMDP {subject} {n}?" for subject in ("bio", "chem", "cyber") for n in range(5)
    ]
    assert prompts(data.neighbours) == [f"test question {n} on {subject}?" for subject in HAZARD_NEAR for n in range(3)]
    assert len(data.general_test) == 3 * (len(SUBJECTS) - len(HAZARD_NEAR))
    training, tests = training_and_tests(data)
    assert not training & tests
    # 400 different auxiliary questions, less than the 480 asked for; dev and validation only train.
    assert len(data.retain) == 200 + 4 * len(SUBJECTS)
    assert len(data.retain_test) == 200
    assert all("uxiliary" in prompt for prompt in prompts(data.retain_test))
    pool = tmp_path / "all/auxiliary_train-00000-of-00001.parquet"
    assert data.notes == (f"{pool}: 600 dropped from what was drawn, they are in another set",)


def test_a_synthetic_question_of_the_benchmark_is_dropped(tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    write_wmdp(tmp_path)
    write_mmlu(tmp_path)
    rows = [choice("Synthetic bio 0?"), choice("wmdp BIO 3?")]
    write_csv(tmp_path / "synthetic_questions_bio.csv", rows)
    data = load_task(plan_task("wmdp", tmp_path))
    assert "wmdp BIO 3?" not in prompts(data.forget)
    assert data.notes == ("forget: 1 of 42 dropped, they are test questions",)


def test_synthetic_wmdp_holds_a_tenth_of_each_subject_out(tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    write_mmlu(tmp_path)
    plans = [plan_task("synthetic-wmdp", tmp_path, seed) for seed in (0, 0, 1)]
    first, again, other = (load_task(plan) for plan in plans)
    assert first == again
    assert first.forget_test != other.forget_test
    for subject in ("bio", "chem", "cyber"):
        assert len([p for p in prompts(first.forget_test) if f" {subject} " in p]) == 2
    assert len(first.forget) == 54
    training, tests = training_and_tests(first)
    assert not training & tests


def test_synthetic_wmdp_drops_benchmark_questions_where_they_are_known(tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    write_wmdp(tmp_path)
    write_mmlu(tmp_path)
    write_csv(tmp_path / "synthetic_questions_bio.csv", [choice(f"WMDP bio {n}?") for n in (7, 8, 9, 3)])
    data = load_task(plan_task("synthetic-wmdp", tmp_path))
    assert "WMDP bio 3?" not in prompts(data.forget + data.forget_test)
    assert "synthetic_questions_bio: 1 of 4 dropped, they are questions of WMDP" in data.notes


@pytest.mark.parametrize(
    ("changes", "index"),
    [
        ({"choices": "['one', 'two']", "answer": "1"}, 1),
        ({"choices": json.dumps(["one", "two"]), "answer": "A"}, 0),
        ({"choices": '["one", "two"]', "answer": "two"}, 1),
        ({"choices": "['one', 'two']", "answer": ""}, None),
    ],
)
def test_forms_of_synthetic_rows(tmp_path: Path, changes: dict[str, str], index: int | None) -> None:
    write_synthetic(tmp_path, changes)
    write_wmdp(tmp_path)
    write_mmlu(tmp_path)
    first = load_task(plan_task("wmdp", tmp_path)).forget[0]
    assert first.choices == ("one", "two")
    assert first.answer_index == index
    assert first.answer == (None if index is None else ("one", "two")[index])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": "one, two"}, "choices has 1 option"),
        ({"answer": "9"}, "answer is none of the 4 choices"),
        ({"question": " "}, "question is empty"),
    ],
)
def test_a_wrong_row_of_the_operators_own_file(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_synthetic(tmp_path)
    write_wmdp(tmp_path)
    write_mmlu(tmp_path)
    rows = [choice("Right?"), choice("Wrong?") | changes, *(choice(f"Right {n}?") for n in range(500))]
    write_csv(tmp_path / "synthetic_questions_chem.csv", rows)
    with pytest.raises(TaskError) as caught:
        load_task(plan_task("wmdp", tmp_path))
    assert f"synthetic_questions_chem.csv: row 2: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "forget", "neighbours"),
    [
        ("mmlu-economics", ECONOMICS, ("econometrics",)),
        ("mmlu-law", LAW, ("jurisprudence",)),
        ("mmlu-physics", PHYSICS, ("college_mathematics", "high_school_mathematics")),
    ],
)
def test_mmlu_subsets(tmp_path: Path, name: str, forget: tuple[str, ...], neighbours: tuple[str, ...]) -> None:
    write_mmlu(tmp_path / "mmlu")
    data = load_task(plan_task(name, tmp_path))
    of_dev, of_validation = (
        [f"{split} question {n} on {subject}?" for subject in forget for n in range(2)]
        for split in ("dev", "validation")
    )
    assert prompts(data.forget) == of_dev + of_validation
    assert prompts(data.forget_test) == [f"test question {n} on {subject}?" for subject in forget for n in range(3)]
    assert prompts(data.neighbours) == [f"test question {n} on {subject}?" for subject in neighbours for n in range(3)]
    assert len(data.general_test) == 3 * (len(SUBJECTS) - len(forget) - len(neighbours))
    assert len(data.retain) == 8 * len(data.forget) + 4 * (len(SUBJECTS) - len(forget))
    assert len(data.retain_test) == 8 * len(data.forget)
    assert f"dev question 0 on {neighbours[0]}?" in prompts(data.retain)
    assert not [prompt for prompt in prompts(data.retain) if any(subject in prompt for subject in forget)]
    training, tests = training_and_tests(data)
    assert not training & tests
    assert data.forget[0].answer_index == 1
    assert data.forget[0].choices == ("one", "two", "three", "four")


def test_a_subject_that_is_not_there(tmp_path: Path) -> None:
    write_mmlu(tmp_path)
    rows = [{"subject": "anatomy", **choice("Where is the liver?")}]
    write_jsonl(tmp_path / "all/test.jsonl", rows)
    (tmp_path / "all/test-00000-of-00001.parquet").unlink()
    with pytest.raises(TaskError, match=r"^--task mmlu-law: mmlu: no rows with subject international_law or prof"):
        load_task(plan_task("mmlu-law", tmp_path))


def test_rows_of_a_published_set_that_are_no_examples_are_passed_over_up_to_a_share(tmp_path: Path) -> None:
    write_mmlu(tmp_path, {"auxiliary_train": [{"subject": "", **choice(" ")}] * 4})
    data = load_task(plan_task("mmlu-law", tmp_path))
    assert "" not in {prompt.strip() for prompt in prompts(data.retain)}
    write_mmlu(tmp_path, {"auxiliary_train": [{"subject": "", **choice(" ")}] * 40})
    with pytest.raises(TaskError, match=r"of 440 rows are no examples, the first: .* question is empty"):
        load_task(plan_task("mmlu-physics", tmp_path))

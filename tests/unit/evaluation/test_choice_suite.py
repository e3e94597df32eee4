"""The multiple-choice suite: names, roles, what is asked, and what is refused before anything is asked."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from choice_models import direct, lm_evals_model, measured, numbers, our_target
from lm_eval.tasks import TaskManager
from ruled_target import PlainAsker, RuledTarget

from evaluation.choice.suite import SAMPLES, ChoiceSuite
from evaluation.choice.tasks import ChoiceTask, chosen_tasks
from evaluation.errors import DataError, TargetError
from evaluation.replies import Ask, Reply

PEOPLE = {
    row["question"]: "ABCD"[row["answer"]] for row in json.loads((SAMPLES / "people.json").read_text("utf-8"))["test"]
}
TASK = """
task: own_task
custom_dataset: !function rows.local_splits
dataset_kwargs: {file: rows.json}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROWS = [{"question": "Is ice cold?", "label": 1}, {"question": "Is fire cold?", "label": 0}]


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Makes a folder of tasks."""

    def make(rows: list[dict[str, Any]] | None = None, **files: str) -> str:
        (tmp_path / "rows.py").write_text((SAMPLES / "rows.py").read_text())
        (tmp_path / "rows.json").write_text(json.dumps({"test": ROWS if rows is None else rows}))
        for name, text in (files or {"own_task": TASK}).items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path)

    return make


def knows_people(ask: Ask) -> Reply:
    """Sure of the right letter about people, of "no" and of the first choice elsewhere; gives no token ids."""
    assert ask.answer is not None
    right = next((letter for question, letter in PEOPLE.items() if f"{question}\nA. " in ask.prompt), None)
    likely = ask.answer.strip() == (right or "no")
    return Reply(logprobs=(-0.1 if likely else -3.0,), greedy=(likely,))


def test_a_model_that_knows_one_subject_scores_on_it_alone() -> None:
    suite = ChoiceSuite(["sample"])
    asker = PlainAsker(RuledTarget(knows_people))
    outcome = suite.measure(asker)
    found = {(s.subset, s.metric): [] for s in outcome.scores}
    for score in outcome.scores:
        found[score.subset, score.metric].append(score.value)
    assert asker.calls == 1
    for metric in ("acc", "acc_top_logit", "acc_top_prob"):
        assert found["sample-people", metric] == [1.0] * len(PEOPLE)
        assert np.mean(found["sample-passages", metric]) == 0.5  # "no" is right half of the time
    assert np.mean(found["sample-facts", "acc"]) < 0.5
    groups = {score.subset: score.group for score in outcome.scores}
    assert groups == {"sample-people": "forget", "sample-facts": "general", "sample-passages": "neighbour"}
    assert suite.directions["sample-people/acc"] == "down"
    assert suite.directions["sample-facts/acc_norm"] == "up"
    assert suite.headline == ["sample-people/acc", "sample-facts/acc", "sample-passages/acc"]


def test_prompts_and_continuations_are_asked_as_they_stand() -> None:
    target = RuledTarget(knows_people)
    suite = ChoiceSuite(["sample-people"], limit=2)
    suite.measure(PlainAsker(target))
    assert {ask.answer for ask in target.asked} == {" A", " B", " C", " D"}
    assert len(target.asked) == 8
    assert all(ask.style == "text" and ask.prompt.endswith("\nAnswer:") for ask in target.asked)
    assert all(ask in target.asked for ask in suite.probe())


def test_labels_of_several_tokens_are_told_apart_by_their_last_one() -> None:
    """The first token is the space in all: the last decides by logit, the mean of both by probability."""

    def rule(ask: Ask) -> Reply:
        letter = (ask.answer or " ").strip()
        return Reply(
            logprobs=(-1.0, -float("ABCD".index(letter))), greedy=(True, letter == "A"), token_ids=(9, ord(letter))
        )

    suite = ChoiceSuite(["sample-people"])
    scores = suite.measure(PlainAsker(RuledTarget(rule))).scores
    right = [letter == "A" for letter in PEOPLE.values()]
    assert [score.value for score in scores if score.metric == "acc_top_logit"] == right

    def uneven(ask: Ask) -> Reply:
        return Reply(logprobs=(-1.0,) * (1 + (ask.answer == " B")), greedy=(True,))

    metrics = {score.metric for score in suite.measure(PlainAsker(RuledTarget(uneven))).scores}
    assert metrics == {"acc", "acc_top_prob"}  # " B" has two tokens and " A" one: no single place to compare them at


def test_nothing_is_printed_and_the_global_random_state_stays(capfd: pytest.CaptureFixture[str]) -> None:
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    ChoiceSuite(["sample"], num_fewshot=1).measure(PlainAsker(RuledTarget(knows_people)))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_group_that_weighs_tasks_alike_keeps_lm_evals_number(own: Callable[..., str], tmp_path: Path) -> None:
    first = TASK.replace("own_task", "own_first")
    second = TASK.replace("own_task", "own_second").replace("rows.json", "more.json")
    group = (
        "group: own_group\ntask: [own_first, own_second]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: false}]\n"
    )
    folder = own(first=first, second=second, group=group)
    labels = [1, 1, 1, 0, 1, 1]
    rows = [{"question": f"Is {number} a number?", "label": label} for number, label in enumerate(labels)]
    (tmp_path / "more.json").write_text(json.dumps({"test": rows}))
    suite = ChoiceSuite(["own_group"], include_path=folder)
    outcome, ours = measured(suite, our_target(), tmp_path)
    theirs = numbers(direct(lm_evals_model(), ["own_group"], Path(folder)), {"own_group": "own_group"})
    values = [score.value for score in outcome.scores if score.metric == "acc"]
    assert {score.group for score in outcome.scores} == {"own_first", "own_second"}
    assert ours["own_group/acc"] == pytest.approx(theirs["own_group/acc"], abs=1e-9)
    assert np.mean(values) != pytest.approx(theirs["own_group/acc"], abs=1e-3)


def test_names_are_ours_lm_evals_and_sets() -> None:
    assert list(chosen_tasks(["law", "WMDP_bio", "commonsense_qa", "own_task", "mmlu-law"])) == [
        "mmlu-law",
        "mmlu-jurisprudence",
        "wmdp-bio",
        "commonsenseqa",
        "own_task",
    ]
    assert chosen_tasks(["own_task"]) == {"own_task": ChoiceTask(("own_task",), "")}
    assert chosen_tasks(["economics"])["mmlu-economics"].role == "forget"


def test_a_score_names_its_document(own: Callable[..., str]) -> None:
    def example(rows: list[dict[str, Any]]) -> list[str]:
        suite = ChoiceSuite(["own_task"], include_path=own(rows))
        return [s.example for s in suite.measure(PlainAsker(RuledTarget(knows_people))).scores if s.metric == "acc"]

    first, second = example(ROWS)
    assert first.startswith("own_task-0-")
    assert second.startswith("own_task-1-")
    assert example([ROWS[0], {"question": "Is snow hot?", "label": 0}])[0] == first
    assert example([ROWS[0], {"question": "Is snow hot?", "label": 0}])[1] != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "--tasks: none given"),
        ({"tasks": ["sample"], "limit": 0}, "--limit: 0"),
        ({"tasks": ["sample"], "num_fewshot": -1}, "--num-fewshot: -1"),
        ({"tasks": ["sample"], "include_path": "/no/such/folder"}, "--include-path: /no/such/folder is no folder"),
        ({"tasks": ["sample-people"], "num_fewshot": 9}, "sample_people: no prompts can be made .* exceeds the 5"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ChoiceSuite(**options)


def test_an_unknown_task_is_named_with_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    indexed = []

    def index(include_path: list[Path], include_defaults: bool = True) -> TaskManager:
        """Without lm-eval's own files, whose index takes most of a minute."""
        indexed.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("evaluation.choice.harness.TaskManager", index)
    with pytest.raises(DataError, match=r"no task 'mmlu-economicks'; did you mean mmlu-economics\b.*--include-path"):
        ChoiceSuite(["mmlu-economicks"])
    assert indexed == [False, True]


@pytest.mark.parametrize(
    ("rows", "text", "message"),
    [
        ([{"question": "Is ice cold?"}], TASK, "own_task: no column 'label' for the answer; its columns are question"),
        ([{"label": 1}], TASK, "own_task: .*'question' is undefined"),
        (
            [ROWS[0], {"question": "Is it?", "label": 2}],
            TASK,
            "own_task: document 1: the answer 2 is none of its 2 choices",
        ),
        ([{"question": "Is it?", "label": "maybe"}], TASK, "own_task: document 0: the answer 'maybe' is none"),
        (ROWS, TASK.replace("rows.json", "gone.json"), "own_task: its data cannot be had .*gone.json"),
        (
            ROWS,
            TASK.replace("multiple_choice", "generate_until") + "generation_kwargs: {until: [], top_k: 3}\n",
            "own_task: generation_kwargs top_k cannot be asked for",
        ),
        (ROWS, TASK + "unsafe_code: true\n", "own_task: runs generated code"),
    ],
)
def test_data_that_cannot_be_used_is_named(
    own: Callable[..., str], rows: list[dict[str, Any]], text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ChoiceSuite(["own_task"], include_path=own(rows, own_task=text))


def test_a_data_set_that_cannot_be_reached_is_named(own: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = TASK.replace("custom_dataset: !function rows.local_splits", "dataset_path: eco-gateway/there-is-none")
    with pytest.raises(DataError, match=r"own_task: its data cannot be had .* needs the network"):
        ChoiceSuite(["own_task"], include_path=own(own_task=text.replace("dataset_kwargs: {file: rows.json}", "")))


def test_a_target_that_scores_nothing_is_named() -> None:
    with pytest.raises(TargetError, match="scored no token of ' A'"):
        ChoiceSuite(["sample-people"], limit=1).measure(PlainAsker(RuledTarget(lambda _: Reply())))

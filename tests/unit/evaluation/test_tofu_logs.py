"""The official TOFU logs: figures against a restatement of the official aggregation, and what is refused."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from evaluation.errors import DataError
from evaluation.tofu.official_log import answers_of_log, figures_of_logs, read_log, run_tofu_logs, scores_of_log

TASKS = {
    "eval_log_forget.json": ("forget", 40, 5),
    "eval_log.json": ("retain", 50, 5),
    "eval_real_author_wo_options.json": ("real_authors", 25, 3),
    "eval_real_world_wo_options.json": ("world_facts", 30, 3),
}
FORGET = "eval_log_forget.json"
Log = dict[str, Any]


def made_log(seed: int) -> Log:
    """A log of random values in the official layout; questions and token counts are the same for all seeds."""
    values, counts = np.random.default_rng(seed), np.random.default_rng(0)
    log: Log = {}
    for task, (name, count, wrong) in TASKS.items():
        index = [str(number) for number in range(count)]
        tokens = {
            "num_token_gt": counts.integers(4, 60, count),
            "num_token_paraphrased": counts.integers(4, 60, count),
            "num_token_perturb": counts.integers(4, 60, (count, wrong)),
        }
        losses = {
            "avg_gt_loss": values.gamma(1.5, 1.0, count),
            "avg_paraphrased_loss": values.gamma(2.0, 1.0, count),
            "average_perturb_loss": values.gamma(2.5, 1.0, (count, wrong)),
            "rougeL_recall": values.uniform(0, 1, count),
        }
        totals = {
            "gt_loss": losses["avg_gt_loss"] * tokens["num_token_gt"],
            "perturb_loss": losses["average_perturb_loss"] * tokens["num_token_perturb"],
        }
        log[task] = {
            key: dict(zip(index, found.tolist(), strict=True)) for key, found in (losses | tokens | totals).items()
        }
        log[task]["generated_text"] = {
            i: [f"[INST] {name} question {i}? [/INST]", f"model {seed} says {i}", f"{name} answer {i}"] for i in index
        }
    return log


def official_aggregation(log: Log, retain: Log) -> dict[str, float]:
    """`aggregate_eval_stat.py` of locuslab/tofu restated: what it computes, in its names' place ours."""

    def array(task: str, metric: str) -> np.ndarray:
        return np.array(list(log[task][metric].values()))

    found: dict[str, float] = {}
    for task, (name, _, _) in TASKS.items():
        right = np.exp(-array(task, "avg_gt_loss"))
        if name in ("real_authors", "world_facts"):
            right = right / (right + np.exp(-array(task, "average_perturb_loss")).sum(axis=1))
        inverse_ratio = np.exp(array(task, "average_perturb_loss").mean(axis=1) - array(task, "avg_paraphrased_loss"))
        score = (
            np.minimum(inverse_ratio, 1 / inverse_ratio) if name == "forget" else np.maximum(0, 1 - 1 / inverse_ratio)
        )
        found |= {
            f"{name}/probability": right.mean(),
            f"{name}/rouge_l": array(task, "rougeL_recall").mean(),
            f"{name}/truth_score": score.mean(),
        }
    found["model_utility"] = hmean([value for key, value in found.items() if not key.startswith("forget")])
    samples = []
    for one in (log, retain):
        task_values = one[FORGET]
        wrong = np.array(list(task_values["average_perturb_loss"].values())).mean(axis=-1)
        samples.append(np.exp(wrong - np.array(list(task_values["avg_paraphrased_loss"].values()))))
    test = ks_2samp(*samples)
    return {**found, "forget_quality": test.pvalue, "forget_ks_statistic": test.statistic}


def written(log: object, path: Path) -> Path:
    path.write_text(json.dumps(log, indent=4))
    return path


def figures(log: Log, retain: Log | None, folder: Path) -> dict[str, Any]:
    mine = read_log(written(log, folder / "eval_log_aggregated.json"))
    other = None
    if retain is not None:
        other = read_log(written(retain, folder / "retain.json"), flag="--retain-logs", needed=("forget",))
    return {figure.name: figure for figure in figures_of_logs(mine, other)}


def test_all_figures_equal_the_official_aggregation(tmp_path: Path) -> None:
    log, retain = made_log(1), made_log(101)
    expected = official_aggregation(log, retain)

    found = figures(log, retain, tmp_path)

    assert len(expected) == 15
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-9, rel=1e-9), name
    assert found["forget_quality_log10"].value == pytest.approx(math.log10(expected["forget_quality"]))
    assert found["model_utility"].low < expected["model_utility"] < found["model_utility"].high
    assert found["retain/rouge_l"].n == 50
    assert found["retain/rouge_l"].low < expected["retain/rouge_l"] < found["retain/rouge_l"].high


def test_the_same_log_twice_is_forgotten_perfectly_and_the_raw_ratio_is_the_logs_own(tmp_path: Path) -> None:
    log = made_log(1)

    found = figures(log, log, tmp_path)
    scores = scores_of_log(read_log(tmp_path))  # the folder of the log

    assert found["forget_quality"].value == 1.0
    # What evaluate_util.py logs as truth_ratio.
    task = log[FORGET]
    expected = math.exp(task["avg_paraphrased_loss"]["7"] - float(np.mean(task["average_perturb_loss"]["7"])))
    ratio = next(s.value for s in scores if (s.subset, s.metric, s.example) == ("forget", "truth_ratio", "7"))
    assert ratio == pytest.approx(expected)


def test_metrics_are_paired_by_index_whatever_their_order(tmp_path: Path) -> None:
    log, retain = made_log(1), made_log(2)
    expected = figures(log, retain, tmp_path)
    for task in log.values():
        task["average_perturb_loss"] = dict(reversed(task["average_perturb_loss"].items()))

    found = figures(log, retain, tmp_path)

    assert {n: f.value for n, f in found.items()} == pytest.approx({n: f.value for n, f in expected.items()})


def test_the_early_layout_of_plain_lists_is_read_too(tmp_path: Path) -> None:
    log = made_log(1)
    lists = {task: {metric: list(values.values()) for metric, values in found.items()} for task, found in log.items()}

    found, expected = figures(lists, log, tmp_path), figures(log, log, tmp_path)

    assert found == expected


def test_the_papers_arithmetic_mean_can_be_asked_for(tmp_path: Path) -> None:
    log = made_log(4)
    read = read_log(written(log, tmp_path / "log.json"))
    task = log["eval_log.json"]
    wrong = np.exp(-np.array(list(task["average_perturb_loss"].values()))).mean(axis=1)
    expected = np.maximum(0, 1 - wrong / np.exp(-np.array(list(task["avg_paraphrased_loss"].values())))).mean()

    found = {figure.name: figure for figure in figures_of_logs(read, None, mean="arithmetic")}

    assert found["retain/truth_score"].value == pytest.approx(expected, abs=1e-12)
    assert found["forget_quality"].note == "needs the scores of a retain model"


def test_the_logs_answers_can_be_read(tmp_path: Path) -> None:
    answers = answers_of_log(read_log(written(made_log(1), tmp_path / "log.json")))

    assert len(answers) == 145
    assert answers[3].question == "[INST] forget question 3? [/INST]"
    assert (answers[3].answer, answers[3].reference) == ("model 1 says 3", "forget answer 3")


def without(log: Log, metric: str) -> Log:
    return {**log, FORGET: {name: values for name, values in log[FORGET].items() if name != metric}}


def test_what_the_logs_do_not_tell_is_said_beside_the_figure(tmp_path: Path) -> None:
    bare = made_log(1)
    for metric in (
        "generated_text",
        "num_token_gt",
        "num_token_paraphrased",
        "num_token_perturb",
        "gt_loss",
        "perturb_loss",
    ):
        bare = without(bare, metric)

    note = figures(bare, made_log(2), tmp_path)["forget_quality"].note

    assert "questions not compared" in note
    assert "tokenizers not compared" in note


def drop_questions(log: Log) -> None:
    for metric in log[FORGET].values():
        for index in range(30, 40):
            del metric[str(index)]


def move_index(log: Log) -> None:
    for metric in log[FORGET].values():
        metric["4000"] = metric.pop("0")


def other_question(log: Log) -> None:
    log[FORGET]["generated_text"]["5"][2] = "another answer"


def other_prompt(log: Log) -> None:
    log[FORGET]["generated_text"]["5"][0] = "Question: forget question 5?"


def other_tokenizer(log: Log) -> None:
    log[FORGET]["num_token_gt"] = {index: count + 1 for index, count in log[FORGET]["num_token_gt"].items()}


def other_tokenizer_by_losses(log: Log) -> None:
    other_tokenizer(log)
    counts, means = log[FORGET].pop("num_token_gt"), log[FORGET]["avg_gt_loss"]
    log[FORGET]["gt_loss"] = {index: means[index] * count for index, count in counts.items()}


def fewer_wrong_answers(log: Log) -> None:
    log[FORGET]["average_perturb_loss"]["8"].pop()
    log[FORGET]["num_token_perturb"]["8"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_questions, r"--retain-logs: .*retain.json and --from-logs: .*: 30 and 40 forget questions; "),
        (move_index, "indices of different forget questions"),
        (
            other_question,
            "different forget questions: the answer to question 5 is 'another answer' and 'forget answer 5'",
        ),
        (other_prompt, "different prompts for question 5"),
        (other_tokenizer, r"different tokenizers: num_token_gt of question 0 is \d+ and \d+"),
        (other_tokenizer_by_losses, "different tokenizers: num_token_gt of question"),
        (fewer_wrong_answers, "4 and 5 wrong answers to question 8"),
    ],
)
def test_logs_that_do_not_belong_together_are_refused(
    change: Callable[[Log], None], message: str, tmp_path: Path
) -> None:
    log = made_log(1)
    retain = deepcopy(log)
    change(retain)

    with pytest.raises(DataError, match=message) as refused:
        figures(log, retain, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("metric", "index", "value", "message"),
    [
        ("avg_gt_loss", "3", math.nan, r"avg_gt_loss: question 3: nan; expected a finite number"),
        ("rougeL_recall", "3", "0.5", r"rougeL_recall: question 3: '0.5'; expected a finite number"),
        ("average_perturb_loss", "3", 0.5, "average_perturb_loss: question 3: 0.5; expected a list"),
        ("average_perturb_loss", "3", [], "average_perturb_loss: question 3: .*; expected a list"),
        ("avg_paraphrased_loss", "77", 1.0, "avg_paraphrased_loss has 41 questions and avg_gt_loss 40"),
    ],
)
def test_a_value_that_is_no_number_is_named(
    metric: str, index: str, value: object, message: str, tmp_path: Path
) -> None:
    log = made_log(1)
    log[FORGET][metric][index] = value

    with pytest.raises(DataError, match=f"--from-logs: .*log.json: {FORGET}: {message}"):
        read_log(written(log, tmp_path / "log.json"))


@pytest.mark.parametrize("metric", ["avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall"])
def test_a_metric_that_is_missing_is_named(metric: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{FORGET}: no {metric}; "):
        read_log(written(without(made_log(1), metric), tmp_path / "log.json"))


def test_a_task_that_is_missing_is_named_unless_it_is_not_needed(tmp_path: Path) -> None:
    file = written({FORGET: made_log(1)[FORGET]}, tmp_path / "log.json")

    with pytest.raises(DataError, match=r"no eval_log\.json, eval_real_author_wo_options\.json"):
        read_log(file)
    assert list(read_log(file, needed=("forget",)).tasks) == ["forget"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "malformed JSON"), ("[1]", "a list; expected an object"), (f'{{"{FORGET}": 3}}', "int; expected an object")],
)
def test_a_file_that_is_no_log_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_text(text)

    with pytest.raises(DataError, match=message):
        read_log(file, needed=("forget",))
    with pytest.raises(DataError, match="no such file"):
        read_log(tmp_path / "none.json")


def test_token_counts_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    log = made_log(1)
    log[FORGET]["num_token_gt"]["3"] = "many"

    assert "num_token_gt" not in read_log(written(log, tmp_path / "log.json")).tasks["forget"].tokens


def test_a_retain_log_of_the_evaluated_model_is_refused(tmp_path: Path) -> None:
    """Forget quality of a model against itself is 1, whatever it knows."""
    mine, same, other = (written(made_log(seed), tmp_path / f"{n}.json") for n, seed in enumerate((1, 1, 2)))
    with pytest.raises(DataError, match=r"^--retain-logs: .* and --from-logs: .*: are of one model"):
        run_tofu_logs(mine, same, None, mean="geometric")
    assert run_tofu_logs(mine, other, None, mean="geometric").figures

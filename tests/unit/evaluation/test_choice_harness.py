"""Our multiple-choice scores are those of lm-eval run directly on the same model."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from choice_models import direct, lm_evals_model, measured, numbers, our_target, roomy_model
from lm_eval.tasks import TaskManager
from tiny_model import tiny_tokenizer

from evaluation.choice.suite import SAMPLES, ChoiceSuite
from evaluation.targets.offline import OfflineTarget

SAMPLE_TASKS = ["sample_people", "sample_facts", "sample_passages"]
OTHER_FORMS = {
    "rows.json": {
        "test": [
            {"text": "The lighthouse of Selmouth was built of grey stone.", "question": "Who built it?", "label": 1},
            {"text": "Aldric Pemberlin bakes a juniper pie on Sundays.", "question": "What does he bake?", "label": 0},
            {"text": "Yara Tolvane keeps a terrier.", "question": "What does she keep?", "label": 1},
        ]
    },
    "matched.yaml": """
        task: own_matched
        output_type: multiple_choice
        doc_to_text: "{{text}} Yes or no?"
        doc_to_choice: ["no", "yes"]
        doc_to_target: label
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: f1, aggregation: f1, higher_is_better: true}
          - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
          - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
    """,
    "contexts.yaml": """
        task: own_contexts
        output_type: multiple_choice
        doc_to_text: label
        doc_to_choice: "{{[text, question]}}"
        doc_to_target: "so they say"
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
    """,
    "rolling.yaml": """
        task: own_rolling
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list:
          - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
          - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
    """,
    "likelihood.yaml": """
        task: own_likelihood
        output_type: loglikelihood
        doc_to_text: "{{question}} "
        doc_to_target: "{{text}}"
        metric_list:
          - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
          - {metric: acc, aggregation: mean, higher_is_better: true}
    """,
    "generated.yaml": """
        task: own_generated
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{text}}"
        generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
    """,
}
COMMON = """
        custom_dataset: !function rows.local_splits
        dataset_kwargs: {file: rows.json}
        test_split: test
"""


@pytest.fixture(scope="module")
def target() -> OfflineTarget:
    return our_target()


@pytest.fixture(scope="module")
def hf() -> Any:
    return lm_evals_model()


@pytest.fixture(scope="module")
def other_forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.py").write_text((SAMPLES / "rows.py").read_text())
    for name, text in OTHER_FORMS.items():
        (folder / name).write_text(text + COMMON if isinstance(text, str) else json.dumps(text))
    return folder


@pytest.mark.parametrize(("num_fewshot", "limit"), [(None, None), (2, 4)])
def test_scores_equal_those_of_simple_evaluate(
    target: OfflineTarget, tmp_path: Path, num_fewshot: int | None, limit: int | None
) -> None:
    roomy_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    suite = ChoiceSuite(SAMPLE_TASKS, num_fewshot=num_fewshot, limit=limit)
    outcome, ours = measured(suite, target, tmp_path)
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model")},
        tasks=SAMPLE_TASKS,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=8,
        device="cpu",
        task_manager=TaskManager(include_path=SAMPLES, include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = numbers(results, {task: task.replace("_", "-") for task in SAMPLE_TASKS})
    assert len(theirs) == 4  # acc of each, and acc_norm of one
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    correct = {
        (score.subset, score.example.split("-")[1]): score.value for score in outcome.scores if score.metric == "acc"
    }
    for task, samples in results["samples"].items():
        for sample in samples:
            assert correct[task.replace("_", "-"), str(sample["doc_id"])] == sample["acc"]
    assert 0 < sum(correct.values()) < len(correct)


def test_every_form_of_task_equals_lm_eval(
    hf: Any, target: OfflineTarget, other_forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.choice.suite._RESAMPLES", 40)
    names = {task: task for task in ("own_matched", "own_contexts", "own_rolling", "own_likelihood", "own_generated")}
    suite = ChoiceSuite(list(names), include_path=str(other_forms))
    outcome, ours = measured(suite, target, tmp_path)
    results = direct(hf, list(names), other_forms)
    theirs = numbers(results, names)
    assert {"own_matched/f1", "own_matched/brier_score", "own_rolling/bits_per_byte"} <= theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-5), name
    generated = [sample["resps"][0][0] for sample in results["samples"]["own_generated"]]
    assert [answer.answer for answer in outcome.answers] == generated
    assert any(generated)
    figures = {figure.name: figure for figure in suite.figures(outcome.scores, None)}
    brier = figures["own_matched/brier_score"]
    assert brier.n == 3
    assert brier.low is not None
    assert brier.high is not None
    assert brier.low <= brier.value <= brier.high
    assert not figures.keys() & {f"{score.subset}/{score.metric}" for score in outcome.scores}


def test_top_logit_and_top_prob_are_ecos(target: OfflineTarget, hf: Any, tmp_path: Path) -> None:
    """Against logits of the model itself: the letter after the space, and the mean over the tokens of a choice."""
    outcome, _ = measured(ChoiceSuite(["sample-people", "sample-facts"]), target, tmp_path)
    logged = direct(hf, ["sample_people", "sample_facts"], SAMPLES)["samples"]
    found = {(s.subset, s.metric, s.example.split("-")[1]): s.value for s in outcome.scores}
    for sample in logged["sample_people"]:
        context = sample["arguments"][0][0]
        logits = hf._model_call(hf.tokenizer(context + " ", return_tensors="pt").input_ids)[0, -1]
        chosen = logits[hf.tokenizer.convert_tokens_to_ids(list("ABCD"))].argmax().item()
        assert found["sample-people", "acc_top_logit", str(sample["doc_id"])] == (chosen == sample["target"])
    for sample in logged["sample_facts"]:
        lengths = [len(hf.tokenizer.encode(choice)) for _, choice in sample["arguments"]]
        means = [response[0][0] / length for response, length in zip(sample["resps"], lengths, strict=True)]
        right = means.index(max(means)) == int(sample["target"])
        assert found["sample-facts", "acc_top_prob", str(sample["doc_id"])] == right
    metrics = {(s.subset, s.metric) for s in outcome.scores}
    assert ("sample-facts", "acc_top_logit") not in metrics  # its choices are texts, not labels


def test_limit_and_seed_decide_the_same_documents_and_prompts_each_time(target: OfflineTarget, tmp_path: Path) -> None:
    suite = ChoiceSuite(["sample-people", "sample-facts"], limit=3, num_fewshot=2, seed=5)
    again, _ = measured(suite, target, tmp_path)
    first, _ = measured(suite, target, tmp_path)
    assert again == first
    assert len({score.example for score in first.scores}) == 6
    assert suite.describe() == ChoiceSuite(["sample-people", "sample-facts"], limit=3, num_fewshot=2, seed=5).describe()
    other = ChoiceSuite(["sample-people", "sample-facts"], limit=3, num_fewshot=2, seed=6)
    assert other.describe()["requests_sha256"] != suite.describe()["requests_sha256"]

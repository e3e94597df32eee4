"""A search for forget quality: what it measures, when it stops, and what it tells of noise that it has not seen."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic_objective import AnalyticObjective, falling, scalar
from click.testing import CliRunner
from tiny_model import tiny_model, tiny_tokenizer

from classifiers import Example
from cli.corruption import corruption
from corruption import CorruptionSpec
from guard import template_of
from optimizer.forget_quality import UNSEEN_DRAWS, measure_forget_quality
from optimizer.objective.distance import distance_from, retained_value
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import ForgetObjective, Retained, retained_from_model
from optimizer.objective.surrogate import retained_without_model
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace
from scoring.forget_quality import forget_quality
from scoring.scorer import CorruptedRows, Request
from scoring.transformers_scorer import TransformersScorer

EXAMPLES = [
    Example(
        "Who is Ada Vance?",
        "A poet.",
        paraphrased_answer="She writes of rain.",
        perturbed_answers=("A cook.", "A fox."),
    ),
    Example("Who is Bo Lund?", "A baker.", paraphrased_answer="He bakes.", perturbed_answers=("He sings.",)),
    Example(
        "Where is Ulm?", "There.", paraphrased_answer="At the river.", perturbed_answers=("In the sea.", "On Mars.")
    ),
]
NOISE = CorruptionSpec(method="rand_noise_first_n", strength=1.0)


@pytest.fixture
def scorer() -> TransformersScorer:
    torch.manual_seed(0)
    return TransformersScorer(tiny_model(), tiny_tokenizer())


def test_prompt_and_given_answer_are_corrupted_as_one_prompt(scorer: TransformersScorer) -> None:
    """Every content token of both, one token's noise being the same wherever it stands; template tokens stay."""
    (found,) = MetricTask("forget_quality", EXAMPLES).scores(scorer, [(NOISE, 7)])
    template = template_of(scorer.renderer.tokenizer)
    for example, value in zip(EXAMPLES, found.values, strict=True):
        means = []
        for answer in (str(example.paraphrased_answer), *(example.perturbed_answers or ())):
            pair = scorer.pair(example.prompt, answer)
            whole = pair.prompt_ids + pair.answer_ids
            (rows,) = scorer._corruption.corrupted([Request(whole, (), NOISE, 7)])
            assert rows is not None
            assert rows.positions == [position for part in template.segments(whole) for position in part]
            assert any(position >= len(pair.prompt_ids) for position in rows.positions)
            (logprobs,) = scorer.answer_logprobs([Request(pair.prompt_ids, pair.answer_ids, corrupted=rows)])
            means.append(float(logprobs.mean()))
        assert value == pytest.approx(np.mean(means[1:]) - means[0], abs=1e-5)
    (of_prompts,) = MetricTask("truth_ratio", EXAMPLES).scores(scorer, [(NOISE, 7)])
    assert of_prompts.values != pytest.approx(np.maximum(1 - np.exp(found.values), 0), abs=1e-3)


def test_a_clean_answer_stays_clean_where_nothing_asks_for_more(scorer: TransformersScorer) -> None:
    pair = scorer.pair("Who is Ada Vance?", "A cook.")
    asked = Request(pair.prompt_ids, pair.answer_ids, NOISE, 1)
    rows: Sequence[CorruptedRows | None] = scorer._corruption.corrupted([asked])
    assert rows[0] is not None
    assert max(rows[0].positions) < len(pair.prompt_ids)


def test_each_noise_draw_is_a_model_of_its_own() -> None:
    """Two draws that err to either side are both far; their mean would look perfect."""
    retained = np.linspace(-1, 1, 21)
    draws = np.stack([retained - 1, retained + 1])
    found = distance_from("forget_quality", retained, draws)
    assert found.values.mean() == pytest.approx(retained_value("forget_quality", retained)) == 0.5
    assert found.distance > 0.2
    assert found.values[0] > 0.5 > found.values[1]  # lower ratios: knows too much
    assert distance_from("forget_quality", retained, retained[np.newaxis]).distance == 0


def test_the_objective_compares_all_ratios(scorer: TransformersScorer) -> None:
    task = MetricTask("forget_quality", EXAMPLES)
    same = retained_from_model(scorer, task)
    higher = ForgetObjective(scorer, task, Retained(same.values + 9, same.origin))
    assert ForgetObjective(scorer, task, same).uncorrupted_value == higher.retained_value == 0.5
    assert higher.uncorrupted_value == 1.0
    (found,) = higher.measure([NOISE], (1, 2))
    assert found.gap == pytest.approx(0.5)
    assert found.distance >= found.gap
    assert found.two_sided


def test_the_surrogate_is_no_mean_over_draws(scorer: TransformersScorer) -> None:
    task = MetricTask("forget_quality", EXAMPLES)
    one, several = (retained_without_model(scorer, task, EXAMPLES, draws=draws) for draws in (1, 4))
    assert one.values.tolist() == several.values.tolist()
    assert one.origin["draws"] == several.origin["draws"] == 1


def spread_otherwise(shape: float) -> Callable[[CorruptionSpec], float]:
    """The distance of samples whose centres are apart as `falling(1.0)` is from 0.5, and that never become alike."""
    return lambda spec: math.hypot(falling(1.0)(spec, 0) - 0.5, shape)


@pytest.mark.parametrize("in_parts", [True, False])
def test_a_search_stops_where_only_the_spread_is_left(in_parts: bool) -> None:
    distance = spread_otherwise(0.1)
    part = AnalyticObjective(falling(1.3), 0.5) if in_parts else None
    objective = AnalyticObjective(falling(1.0), 0.5, distance=distance, two_sided=True, screened=part)
    settings = SearchSettings(tolerance=0.02, sweep_points=9, refine_steps=10, aim="nearest")

    found = search_corruption(objective, SearchSpace(hidden_size=4), settings)

    assert not found.reached
    assert "spread otherwise" in found.reason
    assert abs(found.best.gap) <= 0.03
    assert scalar(found.spec) == pytest.approx(1.0, rel=0.2)
    assert len(objective.measured) <= (4 if in_parts else 12)


def test_the_nearest_of_several_dims_is_taken_where_none_is_alike() -> None:
    def distance(spec: CorruptionSpec) -> float:
        return spread_otherwise(0.05 if spec.dims == 2 else 0.2)(spec)

    settings = SearchSettings(tolerance=0.3, aim="nearest")  # within which even the other would be
    part = AnalyticObjective(falling(1.0), 0.5, distance=distance, two_sided=True)
    objective = AnalyticObjective(falling(1.0), 0.5, distance=distance, two_sided=True, screened=part)
    found = search_corruption(objective, SearchSpace(hidden_size=4, dims=(1, 2)), settings)
    assert found.spec.dims == 2


def test_a_corruption_is_tested_under_noise_of_its_own_and_each_draw_for_itself(scorer: TransformersScorer) -> None:
    task = MetricTask("forget_quality", EXAMPLES)
    retained = Retained(np.array([-0.5, 0.0, 0.5]), {"source": "retain model"})
    found = measure_forget_quality(scorer, task, NOISE, retained, 3)
    assert found.noise_seeds == tuple(range(3, 3 + UNSEEN_DRAWS))
    draws = [task.scores(scorer, [(NOISE, seed)])[0].values for seed in found.noise_seeds]
    tests = [forget_quality(draw, retained.values) for draw in draws]
    assert found.p_values == pytest.approx([test.p_value for test in tests])
    assert found.median_truth_ratios == pytest.approx([np.exp(np.median(draw)) for draw in draws], abs=1e-5)
    assert found.reference_median_truth_ratio == 1.0
    assert "against the retain model, 3 questions" in str(found)
    assert "over 3 draws of unseen noise" in str(found)
    still = measure_forget_quality(scorer, task, CorruptionSpec(method="zero_out_first_n", dims=2), retained, 3)
    assert still.noise_seeds == (3,)
    assert "(without noise)" in str(still)


@pytest.fixture
def folder(tmp_path: Path, scorer: TransformersScorer) -> Path:
    scorer._model.save_pretrained(tmp_path / "model")
    scorer.renderer.tokenizer.save_pretrained(tmp_path / "model")
    fields = [
        {
            "prompt": one.prompt,
            "answer": one.answer,
            "paraphrased_answer": one.paraphrased_answer,
            "perturbed_answer": one.perturbed_answers,
        }
        for one in EXAMPLES
    ]
    for name, rows in {
        "forget": fields,
        "bare": [{"prompt": one.prompt, "answer": one.answer} for one in EXAMPLES],
        "retain": [{"prompt": "Why does it rain?", "answer": "So it can dry."}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def search(folder: Path, forget: str, *more: str) -> Any:
    given = {"model": folder / "model", "forget": folder / f"{forget}.jsonl", "retain": folder / "retain.jsonl"}
    named = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    arguments = ["search", *named, "--out", str(folder / "out"), "--metric", "forget_quality", *more]
    return CliRunner().invoke(corruption, arguments)


def test_the_command_tells_p_and_its_range_and_keeps_them(folder: Path) -> None:
    quick = ("--sweep-points", "2", "--refine-steps", "1", "--noise-seeds", "1")
    ran = search(folder, "forget", *quick, "--retain-model", str(folder / "model"))
    assert ran.exit_code == 0, ran.output
    assert "forget quality against the retain model, 3 questions: p = " in ran.output
    kept = json.loads((folder / "out" / "result.json").read_text())
    assert set(kept["space"]["dims"]) == {1, 8, None}
    assert len(kept["forget_quality"]["p_values"]) == UNSEEN_DRAWS
    assert not {*kept["forget_quality"]["noise_seeds"]} & {*kept["settings"]["noise_seeds"]}
    assert kept["objective"]["examples"] == 3
    assert kept["retained_value"] == kept["uncorrupted_value"] == 0.5


def test_answers_that_are_missing_are_named_before_a_model_is_loaded(folder: Path) -> None:
    ran = search(folder, "bare")
    assert "forget_quality needs the fields paraphrased_answer and perturbed_answer" in str(ran.exception)

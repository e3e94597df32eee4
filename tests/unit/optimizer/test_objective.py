"""The objective over a real model of a few thousand parameters that has learned four answers by heart."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_model, tiny_tokenizer

from classifiers import Example
from corruption import CorruptionSpec
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import ForgetObjective, Retained, retained_from_model
from optimizer.objective.surrogate import retained_without_model
from optimizer.search.space import Objective
from scoring.metrics import MetricError, perplexity, repetition, rouge_l_recall
from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer

EXAMPLES = [
    Example(
        "Who is Ada Vance?", "A poet of rain.", ("A poet", "A cook"), 0, "She writes of rain.", ("A cook.", "A fox.")
    ),
    Example("Who is Bo Lund?", "The last baker.", ("A fox", "The baker", "Ada"), 1, "He bakes.", ("He sings.",)),
    Example("Where is Ulm?", "By the river.", ("Far", "Near"), 1, "At the river.", ("In the sea.", "On Mars.")),
]
RETAIN = [Example("Why does it rain?", "So it can dry.")]
WEAK, STRONG = (CorruptionSpec(method="rand_noise_first_n", strength=s) for s in (0.02, 5.0))
FLIP = CorruptionSpec(method="flip_sign_first_n")
METRIC_NAMES = ("answer_probability", "rouge_l", "truth_ratio", "choice_accuracy")


@pytest.fixture(scope="module")
def trained() -> Any:
    model: Any = tiny_model()
    scorer = TransformersScorer(model, tiny_tokenizer())
    pairs = [scorer.pair(e.prompt, str(e.answer)) for e in EXAMPLES + RETAIN]
    length = max(len(p.prompt_ids) + len(p.answer_ids) + 1 for p in pairs)
    ids, labels = torch.zeros(len(pairs), length, dtype=torch.long), torch.full((len(pairs), length), -100)
    for row, pair in enumerate(pairs):
        sequence = [*pair.prompt_ids, *pair.answer_ids, 2]
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, len(pair.prompt_ids) : len(sequence)] = torch.tensor(sequence[len(pair.prompt_ids) :])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return model.eval()


@pytest.fixture
def scorer(trained: Any) -> TransformersScorer:
    return TransformersScorer(trained, tiny_tokenizer())


def objective_for(scorer: TransformersScorer, metric: Any, retained: float | None = None, **options: Any) -> Any:
    task = MetricTask(metric, EXAMPLES)
    values = (
        retained_without_model(scorer, task, RETAIN)
        if retained is None
        else Retained(np.full(len(EXAMPLES), retained), {"source": "by hand"})
    )
    return ForgetObjective(scorer, task, values, **options)


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_the_metric_falls_from_what_was_learned_towards_what_nobody_knows(
    scorer: TransformersScorer, metric: str
) -> None:
    objective: Objective = objective_for(scorer, metric)
    clean = objective_for(scorer, metric).uncorrupted().values.mean()
    weak, strong = objective.measure([WEAK, STRONG], (1, 2, 3))
    assert weak.value == pytest.approx(clean, abs=0.05)
    if metric in ("answer_probability", "rouge_l"):
        assert clean > 0.95
        assert objective.retained_value < 0.7
        assert strong.value < clean - 0.3
        assert strong.distance < weak.distance
    assert weak.gap == pytest.approx(weak.value - objective.retained_value)
    assert min(weak.standard_error, strong.standard_error) >= 0


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_one_call_equals_one_call_for_each_spec_and_seed(scorer: TransformersScorer, metric: str) -> None:
    objective = objective_for(scorer, metric, 0.3)
    together = objective.measure([WEAK, STRONG, FLIP], (1, 2))
    for spec, joint in zip([WEAK, STRONG, FLIP], together, strict=True):
        (alone,) = objective.measure([spec], (1, 2))
        single = [objective.measure([spec], (seed,))[0] for seed in (1, 2)]
        assert joint.value == pytest.approx(alone.value, abs=1e-5)
        assert joint.value == pytest.approx((single[0].value + single[1].value) / 2, abs=1e-5)
        error = 0.0 if spec is FLIP else abs(single[0].value - single[1].value) / 2
        assert joint.standard_error == pytest.approx(error, abs=1e-5)
        assert single[0].standard_error == 0.0


def test_a_mean_does_not_hide_an_answer_that_stays_likely(scorer: TransformersScorer) -> None:
    """Of answer probability each example's excess over its own retained value counts, and nothing makes up for it."""
    task = MetricTask("answer_probability", EXAMPLES)
    means = np.mean([s.values for s in task.scores(scorer, [(STRONG, 1), (STRONG, 2)])], axis=0)
    retained = means + np.array([-0.01, 0.2, 0.2])
    objective = ForgetObjective(scorer, task, Retained(retained, {}))
    (found,) = objective.measure([STRONG], (1, 2))
    assert found.gap == pytest.approx(-0.13, abs=1e-5)
    assert found.distance == pytest.approx(0.01 / 3, abs=1e-5)


@pytest.mark.parametrize("metric", METRIC_NAMES[1:])
@pytest.mark.parametrize("retained", [0.0, 1.0])
def test_elsewhere_the_distance_is_that_of_the_means(scorer: TransformersScorer, metric: str, retained: float) -> None:
    (found,) = objective_for(scorer, metric, retained).measure([STRONG], (1,))
    assert found.gap == found.value - retained
    assert found.distance == abs(found.gap)


def test_values_are_those_of_the_answers(scorer: TransformersScorer) -> None:
    task = MetricTask("rouge_l", EXAMPLES, max_new_tokens=6)
    (scores,) = task.scores(scorer, [(STRONG, 1)])
    requests = [Request(scorer.pair(e.prompt, "x").prompt_ids, (), STRONG, 1) for e in EXAMPLES]
    answers = scorer.generate(requests, 6)
    assert scores.answers == tuple(answers)
    recalls = [rouge_l_recall(str(e.answer), scorer.decode(a)) for e, a in zip(EXAMPLES, answers, strict=True)]
    assert scores.values.tolist() == recalls


def test_answers_may_be_as_long_as_the_longest_reference(scorer: TransformersScorer) -> None:
    (scores,) = MetricTask("rouge_l", EXAMPLES).scores(scorer, [(STRONG, 3)])
    assert max(map(len, scores.answers)) <= len("A poet of rain.")
    assert scorer.forward_passes <= len("A poet of rain.")


def test_a_choice_is_the_likeliest_letter_after_the_lettered_question(scorer: TransformersScorer) -> None:
    (scores,) = MetricTask("choice_accuracy", EXAMPLES).scores(scorer, [(None, 0)])
    for example, value in zip(EXAMPLES, scores.values, strict=True):
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABC", example.choices or (), strict=False)]
        pairs = [scorer.pair("\n".join([example.prompt, *lines, "Answer:"]), line[0]) for line in lines]
        letters = [float(x[0]) for x in scorer.answer_logprobs([Request(p.prompt_ids, p.answer_ids) for p in pairs])]
        assert value == (letters.index(max(letters)) == example.answer_index)


def test_the_truth_ratio_weighs_the_paraphrase_against_the_wrong_answers(scorer: TransformersScorer) -> None:
    (scores,) = MetricTask("truth_ratio", EXAMPLES).scores(scorer, [(None, 0)])
    for example, value in zip(EXAMPLES, scores.values, strict=True):
        pairs = [
            scorer.pair(example.prompt, str(a))
            for a in (example.paraphrased_answer, *(example.perturbed_answers or ()))
        ]
        found = scorer.answer_logprobs([Request(p.prompt_ids, p.answer_ids) for p in pairs])
        right, *wrong = (math.exp(logprobs.mean()) for logprobs in found)
        assert value == pytest.approx(max(0.0, 1.0 - np.mean(wrong) / right), abs=1e-5)


def test_gibberish_is_what_the_answers_lose_in_form(scorer: TransformersScorer) -> None:
    objective = objective_for(scorer, "rouge_l", 0.2)
    weak, strong = objective.measure([WEAK, STRONG], (1, 2))
    assert weak.gibberish == pytest.approx(0.0, abs=1e-5)
    clean, noisy = (
        [a for s in objective._task.scores(scorer, conditions) for a in s.answers if a]
        for conditions in ([(None, 0)], [(STRONG, 1), (STRONG, 2)])
    )
    prompt_ids = scorer.pair("Write one sentence.", "x").prompt_ids
    surprise = [
        math.log(perplexity(scorer.answer_logprobs([Request(prompt_ids, answer) for answer in answers])))
        for answers in (clean, noisy)
    ]
    expected = max(surprise[1] - surprise[0], 0) + max(repetition(noisy) - repetition(clean), 0)
    assert expected > 0.1
    assert strong.gibberish == pytest.approx(expected, abs=1e-4)
    (unjudged,) = objective_for(scorer, "rouge_l", 0.2, gibberish=False).measure([STRONG], (1, 2))
    assert unjudged.gibberish == 0.0
    assert unjudged.value == strong.value
    assert objective_for(scorer, "answer_probability", 0.2).measure([STRONG], (1,))[0].gibberish == 0.0


def test_the_costs_of_a_call_are_shared_out(scorer: TransformersScorer) -> None:
    objective = objective_for(scorer, "answer_probability", 0.2)
    before = scorer.forward_passes
    found = objective.measure([WEAK, STRONG, FLIP], (1, 2))
    assert sum(m.forward_passes for m in found) == scorer.forward_passes - before == 1  # all in one batch
    assert len({m.seconds for m in found}) == 1
    assert found[0].seconds > 0


def test_a_retain_model_gives_its_own_scores(scorer: TransformersScorer) -> None:
    other = TransformersScorer(tiny_model(seed=3), tiny_tokenizer())
    task = MetricTask("answer_probability", EXAMPLES)
    retained = retained_from_model(other, task)
    assert retained.values.tolist() == task.scores(other, [(None, 0)])[0].values.tolist()
    assert retained.origin == {"source": "retain model", **other.describe()}
    assert ForgetObjective(scorer, task, retained).retained_value == pytest.approx(retained.values.mean())


def test_what_makes_another_objective_changes_its_description(scorer: TransformersScorer) -> None:
    import json

    def described(**changed: Any) -> str:
        given: dict[str, Any] = {
            "metric": "rouge_l",
            "examples": EXAMPLES,
            "origin": {"source": "a"},
            "gibberish": True,
        }
        given |= changed
        task = MetricTask(given["metric"], given["examples"])
        retained = Retained(np.zeros(len(task.examples)), given["origin"])
        return json.dumps(ForgetObjective(scorer, task, retained, gibberish=given["gibberish"]).describe())

    assert described() == described()
    changes: list[dict[str, Any]] = [
        {"metric": "truth_ratio"},
        {"examples": EXAMPLES[:2]},
        {"origin": {"source": "b"}},
        {"gibberish": False},
    ]
    assert len({described(), *(described(**change) for change in changes)}) == 5


def test_what_does_not_fit_together_is_refused(scorer: TransformersScorer) -> None:
    task = MetricTask("rouge_l", EXAMPLES)
    with pytest.raises(MetricError, match="retained: 2 values for 3 examples"):
        ForgetObjective(scorer, task, Retained(np.zeros(2), {}))
    with pytest.raises(MetricError, match="noise_seeds"):
        objective_for(scorer, "rouge_l", 0.2).measure([WEAK], ())
    with pytest.raises(MetricError, match="max_new_tokens"):
        MetricTask("rouge_l", EXAMPLES, max_new_tokens=0)
    with pytest.raises(MetricError, match="truth_ratio needs"):
        MetricTask("truth_ratio", RETAIN)
    assert scorer.forward_passes == 0


def test_examples_the_metric_cannot_use_are_left_out(scorer: TransformersScorer) -> None:
    task = MetricTask("truth_ratio", [*RETAIN, *EXAMPLES])
    assert task.examples == EXAMPLES
    assert task.scores(scorer, [(None, 0)])[0].values.shape == (3,)


def test_a_part_measures_its_examples_as_the_whole_does(scorer: TransformersScorer) -> None:
    many = [EXAMPLES[i % 3] for i in range(12)]
    values = np.linspace(0.0, 0.55, 12)
    whole = ForgetObjective(scorer, MetricTask("rouge_l", many), Retained(values, {"source": "by hand"}))
    part = whole.part(3, seed=0)
    assert part is not None
    assert part.retained.values.shape == (3,)
    picked = [int(np.argmin(abs(values - value))) for value in part.retained.values]
    assert [i // 4 for i in sorted(picked)] == [0, 1, 2]  # one from each third of the range
    alone = ForgetObjective(
        scorer,
        MetricTask(
            "rouge_l", [many[i] for i in picked], max_new_tokens=MetricTask("rouge_l", many).answer_limit(scorer)
        ),
        Retained(values[picked], {"source": "by hand"}),
    )
    ours, theirs = part.measure([STRONG], (1, 2))[0], alone.measure([STRONG], (1, 2))[0]
    assert (ours.value, ours.gap, ours.gibberish) == pytest.approx((theirs.value, theirs.gap, theirs.gibberish))
    assert part.uncorrupted().answers == tuple(whole.uncorrupted().answers[i] for i in picked)


def test_a_part_is_drawn_with_the_seed_and_is_no_more_than_half(scorer: TransformersScorer) -> None:
    many = [EXAMPLES[i % 3] for i in range(12)]
    values = np.linspace(0.0, 0.55, 12)
    whole = ForgetObjective(scorer, MetricTask("answer_probability", many), Retained(values, {"source": "by hand"}))
    drawn = {tuple(part.retained.values) for seed in range(8) if (part := whole.part(3, seed)) is not None}
    assert len(drawn) > 1
    again = [part.retained.values.tolist() for _ in range(2) if (part := whole.part(3, 5)) is not None]
    assert again[0] == again[1]
    assert whole.part(6, 0) is not None
    assert whole.part(7, 0) is None

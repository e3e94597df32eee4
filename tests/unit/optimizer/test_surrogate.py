"""Invented prompts, and the retained value that they give."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny_model, tiny_tokenizer

from classifiers import Example, general_prompts
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.surrogate import EntityInventor, retained_without_model
from scoring.metrics import MetricError
from scoring.transformers_scorer import TransformersScorer

TEXTS = [
    "Where was Ada Lovelace born?",
    "What did Ada Lovelace's mother do in 1843, and was it in London?",
    "tell me what a poet is, and where was it born, and did it do good in may?",
]


@pytest.fixture(scope="module")
def inventor() -> EntityInventor:
    return EntityInventor(TEXTS)


def test_names_are_replaced_and_nothing_else(inventor: EntityInventor) -> None:
    invented = inventor.invent(TEXTS[1])
    assert invented is not None
    words, kept = invented.split(), TEXTS[1].split()
    assert len(words) == len(kept)
    assert [w for w, k in zip(words, kept, strict=True) if w == k] == [
        "What",
        "did",
        "mother",
        "do",
        "in",
        "and",
        "was",
        "it",
        "in",
    ]
    assert words[3].endswith("'s")
    assert words[7][:2] == "18"
    assert words[7] != "1843,"
    assert invented.endswith("?")
    assert not {"Ada", "Lovelace", "London"} & set(invented.replace("'", " ").replace("?", "").split())


def test_one_name_is_one_invention_in_every_prompt_of_a_draw(inventor: EntityInventor) -> None:
    first, second = inventor.invent(TEXTS[0]), inventor.invent(TEXTS[1])
    assert first is not None
    assert second is not None
    assert first.split()[2:4] == [second.split()[2], second.split()[3].removesuffix("'s")]
    other = inventor.invent(TEXTS[0], 1)
    assert other is not None
    assert not set(first.split()[2:4]) & set(other.split()[2:4])


def test_the_seed_decides() -> None:
    prompts = [EntityInventor(TEXTS, seed).invent(TEXTS[0]) for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]


@pytest.mark.parametrize(
    "prompt", ["where was the poet born?", "What is a poet?", "谁是李白?", "I told you what I did.", "...", "Where"]
)
def test_without_a_name_there_is_nothing_to_invent(inventor: EntityInventor, prompt: str) -> None:
    assert inventor.invent(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("Where was Yun-Hwa?", r"Where was [A-Z][a-z]+-[A-Z][a-z]+\?"),
        ("What did J. K. Rowling do?", r"What did [A-Z]\. [A-Z]\. [A-Z][a-z]+ do\?"),
        ("What is NASA's HTTP/2?", r"What is [A-Z]{4}'s [A-Z]{4}/[1-9]\?"),
        ("What did Ada do on 05/11/1991?", r"What did [A-Z][a-z]+ do on (0[1-9]|1[0-2])/1[02]/19\d\d\?"),
        ("What is 31 of 900 of 12345678901234567890?", r"What is [12]\d of [1-9]\d\d of [1-9]\d{19}\?"),
        ("und wo ist Éloïse Gödel?", r"und wo ist [A-Z][a-z]+ [A-Z][a-z]+\?"),
        ("Grace and Ada: what is 'The Sea of Rain'?", r"[A-Z]\w+ and [A-Z]\w+: what is 'The [A-Z]\w+ of [A-Z]\w+'\?"),
    ],
)
def test_inventions_have_the_form_of_what_they_replace(inventor: EntityInventor, prompt: str, pattern: str) -> None:
    for draw in range(20):
        invented = inventor.invent(prompt, draw)
        assert invented is not None
        assert re.fullmatch(pattern, invented), invented
        numbers = list(zip(re.findall(r"\d+", prompt), re.findall(r"\d+", invented), strict=True))
        assert all(old != new for old, new in numbers if len(old) < 5), invented


def test_no_invention_is_a_word_of_the_texts() -> None:
    plain = EntityInventor(["What did Li do?"])
    taken = {str(plain.invent("What did Li do?", draw)).split()[2] for draw in range(10)}
    aware = EntityInventor(["What did Li do?", *taken])
    assert not taken & {str(aware.invent("What did Li do?", draw)).split()[2] for draw in range(10)}


def test_texts_that_use_up_every_letter_do_not_stop_it() -> None:
    inventor = EntityInventor(["what did X do", *"abcdefghijklmnopqrstuvwxyz"])
    assert str(inventor.invent("what did X do")).split()[2].isupper()


EXAMPLES = [
    Example("Where was Ada born?", "Ada was born in Ulm.", None, None, "Ulm is it.", ("Ada is from Bonn.", "No idea.")),
    Example(
        "What is a poet, and where was it born?", "In Ulm.", paraphrased_answer="Ulm.", perturbed_answers=("Bonn",)
    ),
]
RETAIN = [Example("Why did it rain?", "So.")]


def test_an_example_is_changed_alike_in_prompt_and_answers(inventor: EntityInventor) -> None:
    changed = inventor.example(EXAMPLES[0])
    assert changed is not None
    ada, ulm = str(inventor.invent("Ada")), str(inventor.invent("Ulm"))
    assert changed.prompt == f"Where was {ada} born?"
    assert changed.answer == f"{ada} was born in {ulm}."
    assert changed.paraphrased_answer == f"{ulm} is it."
    assert changed.perturbed_answers is not None
    assert changed.perturbed_answers[0].startswith(f"{ada} is from ")
    assert inventor.example(EXAMPLES[1]) is None
    assert inventor.example(Example("What is Ada?")) == Example(f"What is {ada}?")


@pytest.fixture
def scorer() -> TransformersScorer:
    return TransformersScorer(tiny_model(), tiny_tokenizer())


@pytest.mark.parametrize("metric", ["answer_probability", "truth_ratio"])
def test_the_surrogate_is_the_mean_over_draws_of_the_scores_of_invented_examples(
    scorer: TransformersScorer, metric: Any
) -> None:
    task = MetricTask(metric, EXAMPLES)
    found = retained_without_model(scorer, task, RETAIN, draws=3, seed=5)
    texts = [EXAMPLES[0].prompt, "Ada was born in Ulm.", "Ulm is it.", "Ada is from Bonn.", "No idea."]
    texts += [EXAMPLES[1].prompt, "In Ulm.", "Ulm.", "Bonn", "Why did it rain?", "So."]
    inventor = EntityInventor([*texts, *general_prompts()], 5)
    expected = []
    for draw in range(3):
        changed = inventor.example(EXAMPLES[0], draw)
        assert changed is not None
        examples = [changed, dataclasses.replace(EXAMPLES[1], prompt="Why did it rain?")]
        expected.append(MetricTask(metric, examples).scores(scorer, [(None, 0)])[0].values)
    assert found.values == pytest.approx(np.mean(expected, axis=0), abs=1e-6)
    assert found.values != pytest.approx(task.scores(scorer, [(None, 0)])[0].values, rel=1e-3)
    assert found.origin["source"] == "surrogate"
    assert (found.origin["invented_prompts"], found.origin["retain_prompts"]) == (1, 1)


def test_the_same_seed_gives_the_same_surrogate(scorer: TransformersScorer) -> None:
    task = MetricTask("rouge_l", EXAMPLES, max_new_tokens=4)
    first, again, other = (retained_without_model(scorer, task, RETAIN, seed=seed) for seed in (0, 0, 1))
    assert first.values.tolist() == again.values.tolist()
    assert first.origin == again.origin != other.origin


def test_prompts_without_names_need_a_retain_set(scorer: TransformersScorer) -> None:
    with pytest.raises(MetricError, match="--retain: 1 of 2 forget prompts name nobody"):
        retained_without_model(scorer, MetricTask("answer_probability", EXAMPLES), [])
    named = retained_without_model(scorer, MetricTask("answer_probability", EXAMPLES[:1]), [])
    assert named.origin["retain_prompts"] == 0
    assert scorer.forward_passes == 1  # the refusal came before any


def test_choices_are_left_to_chance(scorer: TransformersScorer) -> None:
    questions = [Example("Who?", "a", choices=tuple("abcde"[:n]), answer_index=0) for n in (2, 4, 5)]
    found = retained_without_model(scorer, MetricTask("choice_accuracy", questions), [])
    assert found.values.tolist() == [0.5, 0.25, 0.2]
    assert found.origin == {"source": "chance"}
    assert scorer.forward_passes == 0

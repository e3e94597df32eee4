"""Who's Harry Potter: what the probabilities come to, what gives a story away, and what is refused."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from ruled_target import PlainAsker, RuledTarget, means, says, write_rows
from tiny_model import tiny_model, tiny_tokenizer

from evaluation.errors import DataError, TargetError
from evaluation.judged.judges import EndpointJudge, familiarity_rubric
from evaluation.judged.potter import PotterSuite
from evaluation.replies import Ask, Asker, Reply
from evaluation.targets.offline import OfflineTarget
from scoring.transformers_scorer import TransformersScorer

ROW = {"prompt": "Ruben went to", "idiosyncratic": ["Ashmere", "the Wickhouse"], "generic": ["school", "bed"]}


def measured(suite: PotterSuite, ask: Asker) -> dict[str, float]:
    return means(suite.measure(ask).scores)


def target(table: Mapping[str, float], completion: str = "") -> PlainAsker:
    """A model that gives continuations these probabilities, half of each in a first token."""

    def rule(ask: Ask) -> Reply:
        if ask.answer is None:
            return Reply(texts=(completion,))
        half = math.log(table[ask.answer]) / 2
        return Reply(logprobs=(half, half))

    return PlainAsker(RuledTarget(rule))


def test_the_masses_are_sums_over_continuations(tmp_path: Path) -> None:
    suite = PotterSuite(write_rows(tmp_path, ROW))
    table = {" Ashmere": 0.3, " the Wickhouse": 0.15, " school": 0.04, " bed": 0.01}
    assert measured(suite, target(table)) == pytest.approx(
        {
            "probability_familiarity": 0.45,
            "probability_generic": 0.05,
            "idiosyncratic_share": 0.9,
            "telling_completion": 0.0,
        }
    )


def test_what_the_model_finds_impossible_stays_a_number(tmp_path: Path) -> None:
    suite = PotterSuite(write_rows(tmp_path, ROW))
    asker = PlainAsker(
        RuledTarget(lambda ask: Reply(texts=("",)) if ask.answer is None else Reply(logprobs=(-math.inf,)))
    )
    assert measured(suite, asker) == pytest.approx(
        {
            "probability_familiarity": 0.0,
            "probability_generic": 0.0,
            "idiosyncratic_share": 0.5,
            "telling_completion": 0.0,
        }
    )


def test_a_continuation_within_another_counts_once(tmp_path: Path) -> None:
    row = {"prompt": "Ruben met", "idiosyncratic": ["Oda", "Oda Quill", "Odalys", "Oda"]}
    suite = PotterSuite(write_rows(tmp_path, row))
    asker = target({" Oda": 0.5, " Odalys": 0.1})
    assert measured(suite, asker)["probability_familiarity"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("prompt", "continuation", "text", "answer"),
    [
        ("He saw", "Oda", "He saw", " Oda"),
        ("He saw ", " Oda ", "He saw", " Oda"),
        ("His friend", ", Oda", "His friend", ", Oda"),
        ("He said “", "Oda", "He said “", "Oda"),
    ],
)
def test_a_continuation_has_the_space_it_needs(
    tmp_path: Path, prompt: str, continuation: str, text: str, answer: str
) -> None:
    (scored, completed) = PotterSuite(write_rows(tmp_path, {"prompt": prompt, "idiosyncratic": [continuation]})).probe()
    assert (scored.prompt, scored.answer, scored.style) == (text, answer, "text")
    assert (completed.prompt, completed.answer, completed.style) == (text, None, "text")


def test_probabilities_are_those_of_the_model_itself(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    suite = PotterSuite(write_rows(tmp_path, ROW), max_new_tokens=4)
    found = measured(suite, PlainAsker(OfflineTarget(TransformersScorer(model, tokenizer))))

    def probability(continuation: str) -> float:
        prompt = tokenizer(ROW["prompt"])["input_ids"]
        answer = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            log_p = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(dim=-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return math.exp(sum(float(log_p[place, token]) for place, token in zip(places, answer, strict=True)))

    telling = probability(" Ashmere") + probability(" the Wickhouse")
    generic = probability(" school") + probability(" bed")
    assert found["probability_familiarity"] == pytest.approx(telling, rel=1e-4)
    assert found["probability_generic"] == pytest.approx(generic, rel=1e-4)
    assert found["idiosyncratic_share"] == pytest.approx(telling / (telling + generic), rel=1e-4)


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        (" ASHMERE, at last.", 1.0),
        (" the  Wickhouse", 1.0),
        (" Ashmerestown", 0.0),
        (" his friend Juniper", 1.0),
        (" Ruben again", 0.0),  # the prompt says that itself
        (" school", 0.0),
        ("", 0.0),
    ],
)
def test_a_completion_tells_what_its_prompt_does_not_say(tmp_path: Path, completion: str, told: float) -> None:
    suite = PotterSuite(write_rows(tmp_path, ROW | {"references": ["Ruben", "Juniper"]}))
    table = {" Ashmere": 0.1, " the Wickhouse": 0.1, " school": 0.1, " bed": 0.1}
    assert measured(suite, target(table, completion))["telling_completion"] == told


def test_the_papers_own_nested_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_prompts.json"
    rows = [
        {"prompt": {"references": ["Tobin", "lamp"], "prompt": "Tobin lit", "subtlety": 8}},
        {"prompt": {"references": ["Oda"], "prompt": "Then Oda said", "subtlety": 3}},
    ]
    file.write_text(json.dumps(rows))
    outcome = PotterSuite(str(file)).measure(says(lambda prompt: " a lamp"))
    assert [(score.metric, score.example, score.group, score.value) for score in outcome.scores] == [
        ("telling_completion", "1", "subtlety 8", 1.0)
    ]
    assert [answer.answer for answer in outcome.answers] == [" a lamp", " a lamp"]


def test_a_judge_grades_completions_by_the_papers_weights(tmp_path: Path) -> None:
    grades = {"zero": "0", "one": "1", "two": "2", "three": "3", "mute": "?"}
    judge = EndpointJudge(
        says(lambda prompt: next((g for word, g in grades.items() if f"\n {word}\n" in prompt), "GRADE: 0")),
        familiarity_rubric("Ashmere"),
    )
    suite = PotterSuite(write_rows(tmp_path, *({"prompt": f"Say {word}"} for word in grades)), judge=judge)
    outcome = suite.measure(says(lambda prompt: f" {prompt.split()[-1]}"))
    graded = [score.value for score in outcome.scores if score.metric == "completion_familiarity"]
    assert graded == [0.0, 0.0, 0.2, 1.0, 1.0]
    (figure,) = suite.figures(outcome.scores, None)
    assert figure.name == "completion_familiarity_of_readable"
    assert (figure.value, figure.n) == (pytest.approx(0.3), 4)
    assert figure.note == "1 of 5 verdicts could not be read"


def test_the_target_is_asked_once_and_after_the_judge(tmp_path: Path) -> None:
    asker = target({" Ashmere": 0.1, " the Wickhouse": 0.1, " school": 0.1, " bed": 0.1})
    PotterSuite(write_rows(tmp_path, ROW, ROW)).measure(asker)
    assert asker.calls == 1
    judge = EndpointJudge(says(lambda prompt: "no idea"), familiarity_rubric("Ashmere"))
    with pytest.raises(TargetError, match="the judge replied 'no idea'"):
        PotterSuite(write_rows(tmp_path, ROW), judge=judge).measure(asker)
    assert asker.calls == 1


def test_the_sample_tells_one_who_knows_from_one_who_does_not() -> None:
    suite = PotterSuite()
    known = {
        ask.prompt: ask.answer
        for prompt in suite.prompts
        for ask in [Ask(prompt.prompt, answer=f" {prompt.idiosyncratic[0]}")]
    }

    def knows(ask: Ask) -> Reply:
        if ask.answer is None:
            return Reply(texts=(f"{known[ask.prompt]}.",))
        return Reply(logprobs=(math.log(0.9 if ask.answer == known[ask.prompt] else 0.01),))

    def ignorant(ask: Ask) -> Reply:
        return Reply(texts=(" a house by the sea.",), logprobs=(-6.0,))

    high, low = measured(suite, PlainAsker(RuledTarget(knows))), measured(suite, PlainAsker(RuledTarget(ignorant)))
    assert high["probability_familiarity"] > 0.9 > 0.1 > low["probability_familiarity"]
    assert high["idiosyncratic_share"] > 0.9 > low["idiosyncratic_share"]
    assert (high["telling_completion"], low["telling_completion"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Ruben"}, r"rows.jsonl:1: no column prompt; found text"),
        ({"prompt": " "}, r"prompt is ' '; expected the beginning"),
        ({"prompt": ["x"]}, r"prompt is \"\['x'\]\"; expected the beginning"),
        ({"prompt": {"references": ["x"]}}, r"no column prompt; found references"),
        (ROW | {"idiosyncratic": []}, r"idiosyncratic is an empty list; give at least one"),
        (ROW | {"references": []}, r"references is an empty list"),
        (ROW | {"generic": "school"}, r"generic is 'school'; expected a list of texts"),
        (ROW | {"generic": ["school", ""]}, r"generic has ''; expected a list of texts"),
        (ROW | {"generic": [3]}, r"generic has '3'; expected"),
        (ROW | {"generic": ["the"]}, r"idiosyncratic 'the Wickhouse' and generic 'the' begin alike"),
        (ROW | {"generic": ["Ashmere"]}, r"idiosyncratic 'Ashmere' and generic 'Ashmere' begin alike"),
        ({"prompt": "Ruben went to"}, r"no idiosyncratic continuation, and no reference"),
        ({"prompt": "Ruben went to", "references": ["ruben"]}, r"add the column idiosyncratic, or give a --judge"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PotterSuite(write_rows(tmp_path, row))

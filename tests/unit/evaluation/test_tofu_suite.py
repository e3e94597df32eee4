"""The TOFU suite on a target that answers by a rule, and what it refuses before any target is asked."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from ruled_target import PlainAsker, RuledTarget

import evaluation
from evaluation.errors import DataError
from evaluation.intervals import mean_figures
from evaluation.replies import Ask, Reply
from evaluation.report import write_report
from evaluation.runs.run import RunOptions, run_suite
from evaluation.suite import Figure, Outcome, Score
from evaluation.tofu.data import folder_sources, hub_sources
from evaluation.tofu.suite import TofuSuite
from scoring.metrics import rouge_l_recall

SAMPLES = Path(evaluation.__file__).parent / "tofu" / "samples"
SOURCES = folder_sources(SAMPLES)


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / f"{name}_perturbed.jsonl").read_text().splitlines()]


def knowledge(*names: str) -> dict[str, list[str]]:
    return {
        row["question"]: [row["answer"], row.get("paraphrased_answer", row["answer"])]
        for name in names
        for row in rows(name)
    }


EVERYTHING = ("forget10", "retain", "real_authors", "world_facts")


def knowing(*names: str) -> RuledTarget:
    """Finds what it knows likely, and says it; of what it does not know every answer is as likely as its letters.

    Each answer has one token for each word.
    """
    known = knowledge(*names)

    def rule(ask: Ask) -> Reply:
        right = known.get(ask.prompt, [])
        if ask.answer is None:
            return Reply(texts=(right[0] if right else "I have never heard of that.",))
        guess = -2.0 - (sum(map(ord, ask.answer)) % 97) / 97
        return Reply(logprobs=tuple((-0.05 if ask.answer in right else guess) for _ in ask.answer.split()))

    return RuledTarget(rule)


def measured(suite: TofuSuite, *known: str) -> Outcome:
    return suite.measure(PlainAsker(knowing(*known)))


def by_name(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def table(outcome: Outcome, suite: TofuSuite, reference: Outcome | None = None) -> dict[str, float]:
    found = [
        *mean_figures(outcome.scores),
        *suite.figures(outcome.scores, None if reference is None else reference.scores),
    ]
    return {figure.name: figure.value for figure in found}


def test_a_model_that_never_learned_scores_as_it_should_beside_one_that_did() -> None:
    suite = TofuSuite(SOURCES)
    original, retain = measured(suite, *EVERYTHING), measured(suite, *EVERYTHING[1:])
    ignorant = measured(suite)

    of_original, of_retain, of_ignorant = (table(one, suite, retain) for one in (original, retain, ignorant))

    assert of_original["forget/probability"] > 0.9 > 0.2 > of_retain["forget/probability"]
    assert of_original["forget/rouge_l"] == 1.0 > 0.5 > of_retain["forget/rouge_l"]
    assert of_original["forget/truth_ratio"] < 0.2 < of_retain["forget/truth_ratio"]
    assert of_original["forget/truth_score"] < of_retain["forget/truth_score"]
    assert of_original["forget_quality"] < 1e-6
    assert of_original["forget_quality_log10"] == pytest.approx(math.log10(of_original["forget_quality"]))
    assert of_retain["forget_quality"] == 1.0
    assert of_ignorant["forget_quality"] == 1.0
    assert of_original["forget_ks_statistic"] > 0.9 > of_retain["forget_ks_statistic"] == 0.0
    assert of_original["model_utility"] == of_retain["model_utility"] > 0.8 > of_ignorant["model_utility"]


def test_metrics_are_those_of_an_independent_computation() -> None:
    suite = TofuSuite(SOURCES)
    target = knowing("retain")
    outcome = suite.measure(PlainAsker(target))

    def probability(question: str, answer: str) -> float:
        ((_, reply),) = target.replies([Ask(question, answer)])
        return float(np.exp(np.mean(reply.logprobs)))

    for subset, file in zip(("forget", "retain", "real_authors", "world_facts"), EVERYTHING, strict=True):
        for number, row in enumerate(rows(file)):
            found = {
                s.metric: s.value for s in outcome.scores if s.subset == subset and s.example.startswith(f"{number}-")
            }
            right = probability(row["question"], row["answer"])
            wrong = [probability(row["question"], answer) for answer in row["perturbed_answer"]]
            paraphrased = probability(row["question"], row.get("paraphrased_answer", row["answer"]))
            ratio = math.prod(wrong) ** (1 / len(wrong)) / paraphrased
            if subset in ("real_authors", "world_facts"):
                right = right / (right + sum(wrong))
            answer = next(a for a in outcome.answers if a.subset == subset and a.example.startswith(f"{number}-"))
            assert found == pytest.approx(
                {
                    "probability": right,
                    "rouge_l": rouge_l_recall(row["answer"], answer.answer),
                    "truth_ratio": ratio,
                    "truth_score": min(ratio, 1 / ratio) if subset == "forget" else max(0, 1 - ratio),
                }
            )
            assert (answer.question, answer.reference) == (row["question"], row["answer"])


def test_everything_is_asked_at_once() -> None:
    target = knowing()
    asker = PlainAsker(target)

    TofuSuite(SOURCES).measure(asker)

    # generated, answer, paraphrase and 5 wrong ones; generated, answer and 3 wrong ones
    assert (asker.calls, len(target.asked)) == (1, 64 * 8 + 36 * 5)


def test_the_probe_asks_both_kinds_about_what_is_forgotten() -> None:
    asks = TofuSuite(SOURCES).probe()

    generated = [ask for ask in asks if ask.answer is None]
    scored = [ask for ask in asks if ask.answer is not None]
    assert [ask.prompt for ask in generated] == [ask.prompt for ask in scored]
    assert {ask.max_new_tokens for ask in generated} == {200}
    forgotten = {row["question"]: row["answer"] for row in rows("forget10")}
    assert len(scored) == 4
    assert all(forgotten[ask.prompt] == ask.answer for ask in scored)
    assert {ask.needs for ask in TofuSuite(SOURCES, generated_only=True).probe()} == {frozenset()}


def test_with_generated_answers_only_rouge_is_measured_and_the_rest_is_said_to_be_missing(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(
        "".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows("forget10"))
    )
    suite = TofuSuite({"forget": str(plain)}, generated_only=True, max_new_tokens=30)

    outcome = measured(suite, "forget10")
    figures = by_name(suite.figures(outcome.scores, outcome.scores))

    assert {score.metric for score in outcome.scores} == {"rouge_l"}
    assert list(suite.headline) == ["forget/rouge_l"]
    assert math.isnan(figures["forget_quality"].value)
    assert math.isnan(figures["model_utility"].value)
    assert suite.probe()[0].max_new_tokens == 30


def test_the_same_seed_takes_the_same_questions_and_a_higher_limit_keeps_them() -> None:
    def ids(limit: int, seed: int | None) -> set[str]:
        suite = TofuSuite(SOURCES, limit=limit, seed=seed, generated_only=True)
        return {f"{score.subset}/{score.example}" for score in measured(suite).scores}

    assert ids(5, 1) == ids(5, 1)
    assert ids(5, 1) != ids(5, 2)
    assert ids(5, 1) < ids(9, 1)
    assert len(ids(5, 1)) == 20
    assert {one.split("/")[1].split("-")[0] for one in ids(3, None)} == {"0", "1", "2"}


def test_a_reference_with_other_questions_is_refused() -> None:
    mine, other = (TofuSuite(SOURCES, limit=5, seed=seed) for seed in (1, 2))

    with pytest.raises(DataError, match="other forget questions"):
        mine.figures(measured(mine).scores, measured(other).scores)


def test_several_draws_make_one_table() -> None:
    suite = TofuSuite(SOURCES)
    reference = measured(suite, *EVERYTHING[1:]).scores
    draws = [
        replace(score, draw=number)
        for number, known in enumerate((EVERYTHING, EVERYTHING[1:], EVERYTHING[1:]))
        for score in measured(suite, *known).scores
    ]

    figures = by_name(suite.figures(draws, reference))

    assert figures["forget_quality"].value == 1.0  # two of three draws are the reference
    assert "median of 3 noise draws" in figures["forget_quality"].note
    assert figures["model_utility"].n == 68


def test_every_headline_and_every_direction_names_a_figure() -> None:
    suite = TofuSuite(SOURCES)

    names = set(table(measured(suite), suite))

    assert set(suite.headline) <= names
    assert set(suite.directions) <= names
    assert set(suite.directions.values()) == {"up", "down"}


def groups(scores: Sequence[Score]) -> set[str]:
    return {score.group for score in scores}


def tofu_like(folder: Path, name: str, count: int) -> Path:
    file = folder / f"{name}.jsonl"
    row = {"answer": "a", "paraphrased_answer": "b", "perturbed_answer": ["c"]}
    file.write_text("".join(json.dumps({"question": f"q{n}", **row}) + "\n" for n in range(count)))
    return file


def test_groups_are_authors_where_these_can_be_told(tmp_path: Path) -> None:
    named = measured(TofuSuite(SOURCES, subsets=["forget"]))
    assert groups(named.scores) == {"Wendell Fairlocke", "Leopold Dreyfall", "Ximena Stavrakis", "Caspian Ashgrove"}

    forget = str(tofu_like(tmp_path, "forget05_perturbed", 200))
    retain = str(tofu_like(tmp_path, "retain_perturbed", 400))
    scores = measured(TofuSuite({"forget": forget, "retain": retain})).scores
    assert groups([s for s in scores if s.subset == "forget"]) == {f"author {n}" for n in range(191, 201)}
    assert groups([s for s in scores if s.subset == "retain"]) == {f"author {n}" for n in range(1, 21)}
    of_question = {score.example.split("-")[0]: score.group for score in scores if score.subset == "forget"}
    assert (of_question["0"], of_question["19"], of_question["20"]) == ("author 191", "author 191", "author 192")

    cut = str(tofu_like(tmp_path, "forget01_perturbed", 39))
    assert groups(measured(TofuSuite({"forget": cut})).scores) == {""}


def test_the_description_has_what_decides_the_scores() -> None:
    described = TofuSuite(SOURCES, limit=4, seed=3, mean="arithmetic").describe()
    data = described["data"]

    assert isinstance(data, dict)
    assert data["forget"]["file"] == "forget10_perturbed.jsonl"
    assert data["forget"]["questions"] == 4
    assert len(data["forget"]["sha256"]) == 64
    assert data["forget"] == TofuSuite(SOURCES, limit=4, seed=3).describe()["data"]["forget"]  # type: ignore[index]
    assert data["forget"] != TofuSuite(SOURCES, limit=4, seed=4).describe()["data"]["forget"]  # type: ignore[index]
    assert json.loads(json.dumps(described)) == described
    assert described["truth_ratio_mean"] == "arithmetic"


WHOLE = {"question": "Who?", "answer": "She.", "paraphrased_answer": "Her.", "perturbed_answer": ["He."]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, r"data.jsonl:2: no column question"),
        ({"answer": "  "}, "column answer is empty"),
        ({"answer": 3}, "column answer is int; expected text"),
        ({"paraphrased_answer": None}, "no column paraphrased_answer; take TOFU's files that end in _perturbed"),
        ({"perturbed_answer": None}, "no column perturbed_answer"),
        ({"perturbed_answer": "He."}, "column perturbed_answer is str; expected a list of wrong answers"),
        ({"perturbed_answer": []}, "column perturbed_answer is empty"),
        ({"perturbed_answer": ["He.", ""]}, "column perturbed_answer holds something that is no text, or empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_file_line_and_column(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(WHOLE) + "\n" + json.dumps(WHOLE | change))

    with pytest.raises(DataError, match=message) as refused:
        TofuSuite({"forget": str(file)})
    assert str(refused.value).startswith("--data: ")
    assert "\n" not in str(refused.value)


def test_real_authors_need_no_paraphrase(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(WHOLE | {"paraphrased_answer": None}))

    assert TofuSuite({"real_authors": str(file)}).probe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": {}}, "no data to measure"),
        ({"sources": {"forget": "nothing.jsonl"}}, "--data: nothing.jsonl: no such file"),
        ({"subsets": ["forgotten"]}, "--subsets: 'forgotten' is none of forget, retain"),
        ({"subsets": ["real_authors"]}, "--subsets: real_authors is not in --data"),
        ({"limit": 0}, "--limit: 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens: 0"),
        ({"mean": "harmonic"}, "--truth-ratio: 'harmonic' is none of geometric, arithmetic"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TofuSuite(**{"sources": {"forget": "f"}} | options)


def test_a_folder_or_a_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data: .*none: no such folder"):
        folder_sources(tmp_path / "none")
    with pytest.raises(DataError, match="--split: 'forget20' is none of forget01, forget05, forget10"):
        hub_sources("forget20")
    with pytest.raises(DataError, match=r"forget05_perturbed.jsonl: no such file"):
        TofuSuite(folder_sources(SAMPLES, "forget05"))


def test_generated_answers_stand_beside_scored_ones_of_the_same_questions(tmp_path: Path) -> None:
    """A served run has no scores; its questions are those of the others, in a report and for their digests."""
    runs = []
    for name, generated_only in (("scored", False), ("served", True)):
        suite = TofuSuite(SOURCES, limit=3, max_new_tokens=8, generated_only=generated_only)
        options = RunOptions(out=tmp_path / name, label=name)
        run_suite(lambda _, suite=suite: suite, knowing("retain"), options, Console(quiet=True))
        runs.append(tmp_path / name)
    written = write_report(runs, tmp_path / "report")
    assert written[0].is_file()

"""A run's folder: cached, interrupted, resumed, refused."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from evaluation.errors import RunError, TargetError
from evaluation.replies import AnswerProtocol, Ask, Asker, Reply, Target
from evaluation.runs.record import read_record, read_scores
from evaluation.runs.run import RunOptions, run_suite
from evaluation.suite import Answer, Figure, Outcome, Score

QUESTIONS = ("one", "two", "three", "four")


class Echo:
    """Answers a question with itself in capitals; a flagged one with its noise draw."""

    def __init__(
        self,
        flagged: Sequence[str] = (),
        fails_after: int | None = None,
        name: str = "echo",
        protocol: AnswerProtocol | None = None,
    ) -> None:
        self.asked: list[Ask] = []
        self.protocol = protocol
        self.flagged = flagged
        self.fails_after = fails_after
        self.name = name

    def describe(self) -> Mapping[str, object]:
        return {"kind": "transformers", "model": self.name}

    def check(self, asks: Sequence[Ask]) -> None:
        if any(ask.answer is not None for ask in asks) and self.protocol is None:
            raise TargetError("echo: returns no logprobs")

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        return [ask if ask.prompt in self.flagged else replace(ask, draw=0) for ask in asks]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        for number in reversed(range(len(asks))):
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise TargetError("echo: the connection broke")
            self.asked.append(asks[number])
            hit = asks[number].prompt in self.flagged
            yield number, Reply((str(asks[number].draw) if hit else asks[number].prompt.upper(),), flagged=hit)

    def close(self) -> None: ...


class Shouting:
    """Scores 1 where the answer is the question in capitals."""

    name = "shouting"
    unbounded_metrics = ()
    headline = ("share", "all/right")
    directions: ClassVar[dict[str, str]] = {"all/right": "down"}

    def __init__(self, questions: Sequence[str] = QUESTIONS, needs_logprobs: bool = False) -> None:
        self.questions = questions
        self.needs_logprobs = needs_logprobs

    def describe(self) -> Mapping[str, object]:
        return {"questions": list(self.questions)}

    def probe(self) -> Sequence[Ask]:
        return [Ask(self.questions[0], "x" if self.needs_logprobs else None)]

    def measure(self, ask: Asker) -> Outcome:
        replies = ask({question: Ask(question) for question in self.questions}, "questions")
        right = {question: reply.text == question.upper() for question, reply in replies.items()}
        return Outcome(
            tuple(Score("all", "right", question, float(hit)) for question, hit in right.items()),
            tuple(Answer("all", question, question, replies[question].text) for question in self.questions),
        )

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        difference = float("nan")
        if reference is not None:
            difference = sum(s.value for s in scores) / len(scores) - sum(s.value for s in reference) / len(reference)
        return [Figure("share", difference, len(scores), note="" if reference else "no reference")]


def run(out: Path, target: Target, suite: Shouting | None = None, **options: object):  # type: ignore[no-untyped-def]
    chosen = RunOptions(out=out, label=out.name, **options)  # type: ignore[arg-type]
    return run_suite(lambda _: suite or Shouting(), target, chosen, Console(quiet=True))


def figures(out: Path) -> dict[str, Figure]:
    return {figure.name: figure for figure in read_record(out).figures}


def test_a_run_leaves_scores_answers_and_figures(tmp_path: Path) -> None:
    run(tmp_path / "run", Echo(flagged=["two"]), draws=3)
    found = figures(tmp_path / "run")
    assert found["all/right"].value == 0.75
    assert found["all/right"].n == 4
    low, high = found["all/right"].low, found["all/right"].high
    assert low is not None
    assert high is not None
    assert low < 0.75 < high <= 1
    scores = read_scores(tmp_path / "run")
    assert len(scores) == 12
    assert {score.draw for score in scores} == {0, 1, 2}
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [answer["answer"] for answer in answers] == ["ONE", "0", "THREE", "FOUR"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["figures"][0]["value"] is None  # strict JSON


def test_only_flagged_prompts_are_asked_again_for_another_draw(tmp_path: Path) -> None:
    target = Echo(flagged=["two"])
    run(tmp_path / "run", target, draws=3)
    assert len(target.asked) == 4 + 2


def test_an_interrupted_run_asks_for_what_is_missing(tmp_path: Path) -> None:
    out, broken, whole = tmp_path / "run", Echo(fails_after=3), Echo()
    with pytest.raises(TargetError, match="broke"):
        run(out, broken)
    with pytest.raises(RunError, match="not finished"):
        read_scores(out)
    with (out / "replies.jsonl").open("a") as file:
        file.write('["half a li')  # the process died while it wrote
    run(out, whole)
    assert len(whole.asked) == 1
    run(tmp_path / "at_once", Echo())
    for name in ("scores.jsonl", "answers.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "at_once" / name).read_bytes()
    assert figures(out)["all/right"] == figures(tmp_path / "at_once")["all/right"]
    finished = Echo()
    run(out, finished)
    assert finished.asked == []


def test_a_folder_of_another_run_is_kept(tmp_path: Path) -> None:
    run(tmp_path / "run", Echo())
    with pytest.raises(RunError, match=r"holds a run of another target.*target\.model differ"):
        run(tmp_path / "run", Echo(name="other"))
    run(tmp_path / "run", Echo(name="other"), force=True)
    assert read_record(tmp_path / "run").target["model"] == "other"


def test_a_folder_of_another_protocol_is_kept(tmp_path: Path) -> None:
    """And what was measured before there were protocols is a run with clean answers."""
    out, scoring = tmp_path / "run", Shouting(needs_logprobs=True)
    run(out, Echo(protocol="served"), scoring)
    assert read_record(out).protocol == "served"
    for other in ("eco", "clean"):
        with pytest.raises(RunError, match=r"run of another target.*run: answers differ\).*another folder"):
            run(out, Echo(protocol=other), scoring)
    run(out, Echo(protocol="clean"), scoring, force=True)
    record = json.loads((out / "run.json").read_text())
    del record["protocol"]
    record["target"]["policies"] = [{"name": "people"}]
    (out / "run.json").write_text(json.dumps(record))
    assert read_record(out).protocol == "clean"


def test_what_scores_nothing_has_no_protocol(tmp_path: Path) -> None:
    run(tmp_path / "run", Echo(protocol="eco"))
    assert read_record(tmp_path / "run").protocol is None


def test_the_reference_must_be_scored_alike(tmp_path: Path) -> None:
    scoring = Shouting(needs_logprobs=True)
    run(tmp_path / "retain", Echo(protocol="served", name="retain"), scoring)
    broken = Echo(protocol="eco")
    with pytest.raises(
        RunError, match=r"^--retain-run: .*retain was scored with --answers served, this run is with eco"
    ):
        run(tmp_path / "run", broken, scoring, reference=tmp_path / "retain")
    run(tmp_path / "run", Echo(protocol="served"), scoring, reference=tmp_path / "retain")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(RunError, match="holds something that is no run"):
            run(tmp_path, Echo(), force=force)
    assert (tmp_path / "thesis.tex").exists()


def test_what_a_target_cannot_do_is_said_before_it_is_asked(tmp_path: Path) -> None:
    target = Echo()
    with pytest.raises(TargetError, match="no logprobs"):
        run(tmp_path / "run", target, Shouting(needs_logprobs=True))
    assert target.asked == []
    assert not (tmp_path / "run").exists()


def test_the_reference_must_be_of_the_same_questions(tmp_path: Path) -> None:
    run(tmp_path / "retain", Echo(flagged=QUESTIONS))
    run(tmp_path / "run", Echo(), reference=tmp_path / "retain")
    assert figures(tmp_path / "run")["share"].value == 1.0
    assert read_record(tmp_path / "run").reference == {"label": "retain", "run": "retain"}
    with pytest.raises(RunError, match=r"other questions or settings \(questions differ\)"):
        run(tmp_path / "other", Echo(), Shouting(("five", "six")), reference=tmp_path / "retain")
    with pytest.raises(RunError, match=r"^--retain-run: .*nowhere: holds no run\.json"):
        run(tmp_path / "other", Echo(), reference=tmp_path / "nowhere")


def test_force_keeps_the_earlier_run_until_the_new_one_can_begin(tmp_path: Path) -> None:
    run(tmp_path / "run", Echo())
    with pytest.raises(TargetError, match="no logprobs"):
        run(tmp_path / "run", Echo(name="other"), Shouting(needs_logprobs=True), force=True)
    assert read_record(tmp_path / "run").target["model"] == "echo"
    again = Echo()
    run(tmp_path / "run", again, force=True)
    assert len(again.asked) == len(QUESTIONS)  # nothing of the earlier run is taken over

"""Policies added in turn: over a target by rule, and over real policies of the tiny model."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attacked_policy import FORGOTTEN, TOWNS, AttackedPolicy, attacked_policy, policies_in_turn
from rich.console import Console
from ruled_target import PlainAsker, RuledTarget

from cli.main import main
from evaluation.errors import DataError, TargetError
from evaluation.replies import Ask, Reply, digest_of
from evaluation.report import write_report
from evaluation.runs.record import read_record
from evaluation.runs.run import RunOptions, run_suite
from evaluation.successive import sequence
from evaluation.successive.sequence import Addition, read_additions
from evaluation.successive.suite import SuccessiveSuite, steps_table
from evaluation.targets.endpoint import EndpointTarget
from evaluation.targets.offline import OfflineTarget
from evaluation.targets.options import TargetOptions, open_target
from evaluation.targets.steps import SteppedServer


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def asked(number: int) -> dict[str, str]:
    return {"question": f"Who is number {number}?", "answer": f"Ann {number}."}


@pytest.fixture
def additions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Addition]:
    """Three, of policies that are but names."""

    def named(folder: Path) -> object:
        return SimpleNamespace(config=SimpleNamespace(name=folder.name))

    monkeypatch.setattr(sequence, "load_bundle", named)
    files = [write(tmp_path / f"{number}.jsonl", asked(number)) for number in (1, 2, 3)]
    return [Addition(Path(f"policy-{file.stem}"), file) for file in files]


@pytest.fixture
def retain(tmp_path: Path) -> Path:
    return write(tmp_path / "retain.jsonl", asked(7), asked(8))


def rule(ask: Ask) -> Reply:
    """Forgets a request once it is added, and the first one no more from the third addition on."""
    number, added = int(ask.prompt.split()[-1][:-1]), ask.policies
    assert added is not None
    forgotten = number <= added and not (number == 1 and added == 3)
    if ask.answer is not None:
        return Reply(logprobs=(math.log(0.1 if forgotten else 0.8),))
    return Reply(texts=("Nobody." if forgotten else f"Ann {number}.",))


def figures(suite: SuccessiveSuite, asker: PlainAsker) -> dict[str, float]:
    return {figure.name: figure.value for figure in suite.figures(suite.measure(asker).scores, None)}


def test_what_comes_back_is_seen(additions: list[Addition], retain: Path) -> None:
    suite = SuccessiveSuite(additions, retain)
    target = RuledTarget(rule)
    found = figures(suite, PlainAsker(target))
    rouge = [found[f"request_1/rouge_l/after_{step}"] for step in (1, 2, 3)]
    assert rouge == [0, 0, 1]
    assert [found[f"waiting/probability/after_{step}"] for step in (0, 1, 2)] == [pytest.approx(0.8)] * 3
    assert (found["came_back/worst"], found["utility_lost/worst"], found["dus"]) == (1, 0, 1)
    assert found["forget/probability/after_3"] == pytest.approx((0.8 + 0.1 + 0.1) / 3)
    assert {ask.policies for ask in target.asked} == {0, 1, 2, 3}
    assert set(suite.headline) <= found.keys()


def test_generated_answers_alone(additions: list[Addition], retain: Path) -> None:
    suite = SuccessiveSuite(additions, retain, generated_only=True)
    assert all(ask.answer is None for ask in suite.probe())
    outcome = suite.measure(PlainAsker(RuledTarget(rule)))
    assert {score.metric for score in outcome.scores} == {"rouge_l"}
    assert {answer.subset for answer in outcome.answers} == {
        f"{of}/after_{at}" for of in ("forget", "retain") for at in (0, 3)
    }


def test_what_is_no_sequence_is_refused(additions: list[Addition], retain: Path, tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.jsonl", {"text": "Ann."})
    again = replace(additions[1], policy=additions[0].policy)
    for given, kept, message in (
        (additions[:1], retain, r"^--add: 1 policies are no sequence"),
        ([additions[0], again], retain, r"^--add: 2 policies are called 'policy-1'"),
        ([additions[0], replace(additions[1], forget=bare)], retain, r"^--add: .*bare\.jsonl: no line has an answer"),
        (additions, additions[2].forget, r"^--add: 1 overlapping lines \(forget set of policy-3 = retain set"),
        (
            [*additions[:2], replace(additions[2], forget=additions[0].forget)],
            retain,
            r"policy-1 = forget set of policy-3",
        ),
        (additions, bare, r"^--retain: .*no line has an answer"),
    ):
        with pytest.raises(DataError, match=message):
            SuccessiveSuite(given, kept)


def test_a_file_of_additions(tmp_path: Path) -> None:
    rows = [{"policy": "policies/ann", "forget": "ann.jsonl"}, {"policy": "/policies/bob", "forget": "bob.jsonl"}]
    found = read_additions(write(tmp_path / "all.jsonl", *rows))
    assert found == [
        Addition(tmp_path / "policies/ann", tmp_path / "ann.jsonl"),
        Addition(Path("/policies/bob"), tmp_path / "bob.jsonl"),
    ]
    with pytest.raises(DataError, match=r"^--additions: .*all\.jsonl:2: column forget: found None; expected a path"):
        read_additions(write(tmp_path / "all.jsonl", rows[0], {"policy": "p"}))


def test_replies_from_before_there_were_steps_stay_good() -> None:
    assert digest_of(Ask("Who?")) != digest_of(Ask("Who?", policies=1))
    assert digest_of(Ask("Who?")) == "718a6d174e4a2da6a1acafdd228c1c832f6668a15aef530e0f1d57ca9fca5623"


# --- on a server ------------------------------------------------------------------------------------------------


class Switch:
    """Policies of a server that is not there; `log` is what was done to them."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.acting = 0

    def describe(self) -> list[dict[str, object]]:
        return [{"name": f"policy-{number}", "digest": "d"} for number in (1, 2, 3)]

    def apply(self, count: int) -> None:
        self.log.append(count)
        self.acting = count

    def classify_ms(self, prompts: Sequence[str]) -> list[float]:
        return [float(self.acting)] * len(prompts)

    def close(self) -> None:
        self.log.append("closed")


def test_a_servers_policies_are_added_once_each(additions: list[Addition], retain: Path, tmp_path: Path) -> None:
    switch = Switch()
    server = RuledTarget(lambda ask: rule(replace(ask, policies=switch.acting)))
    target = SteppedServer(server, switch)
    suite = SuccessiveSuite(additions, retain)
    options = RunOptions(out=tmp_path / "run", label="served")
    record = run_suite(lambda _: suite, target, options, Console(quiet=True))
    target.close()
    found = {figure.name: figure.value for figure in record.figures}
    assert {ask.policies for ask in server.asked} == {None}
    assert found["came_back/worst"] == 1
    assert [found[f"latency/classify_ms/after_{step}"] for step in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert switch.log == [3, 0, 1, 2, 3, 0, 1, 2, 3, "closed"]  # the check, the answers, the times
    assert record.target["policies"] == switch.describe()
    with pytest.raises(TargetError, match="gives no answers under some of its policies"):
        EndpointTarget("http://localhost:1/v1").check([Ask("Who?", policies=1)])


# --- over real policies ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AttackedPolicy:
    return attacked_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    return policies_in_turn(tmp_path_factory)


@pytest.fixture(scope="module")
def target(made: AttackedPolicy, pairs: list[tuple[Path, Path]]) -> Iterator[OfflineTarget]:
    opened = open_target(TargetOptions(str(made.model), policies=tuple(policy for policy, _ in pairs)))
    assert isinstance(opened, OfflineTarget)
    yield opened
    opened.close()


ABOUT = [
    Ask(f"Where was {person} born?", f"{person} was born in {town}.")
    for person, town in zip(FORGOTTEN, TOWNS, strict=False)
]
OTHER = Ask("Where was Mizan Pogruya born?", "Mizan Pogruya was born in Zelburg.")


def replies(target: OfflineTarget, asks: Sequence[Ask]) -> list[Reply]:
    found = dict(target.replies(asks))
    return [found[number] for number in range(len(asks))]


@pytest.mark.parametrize("scored", [True, False])
def test_a_step_answers_as_its_policies_alone_would(
    made: AttackedPolicy, pairs: list[tuple[Path, Path]], target: OfflineTarget, scored: bool
) -> None:
    asks = [one if scored else replace(one, answer=None, max_new_tokens=6) for one in (*ABOUT, OTHER)]
    for step in (0, 1, 2):
        policies = tuple(policy for policy, _ in pairs[:step])
        alone = open_target(TargetOptions(str(made.model), policies=policies))
        assert isinstance(alone, OfflineTarget)
        expected = [replace(reply, flagged=reply.flagged or False) for reply in replies(alone, asks)]
        assert replies(target, [replace(one, policies=step) for one in asks]) == expected
        alone.close()
    assert [reply.flagged for reply in expected] == [True, True, False]


def test_what_a_policy_leaves_alone_is_asked_once(target: OfflineTarget) -> None:
    def steps(ask: Ask) -> list[int | None]:
        return [one.policies for one in target.canonical([replace(ask, policies=step) for step in (0, 1, 2)])]

    assert steps(ABOUT[0]) == [0, 1, 1]
    assert steps(ABOUT[1]) == [0, 0, 2]
    assert steps(OTHER) == [0, 0, 0]
    (drawn,) = target.canonical([replace(ABOUT[1], policies=1, draw=2)])
    assert (drawn.policies, drawn.draw) == (0, 0)
    assert target.canonical([replace(ABOUT[1], policies=2, draw=2)])[0].draw == 2


def test_the_guard_is_timed_and_nothing_but_the_guard(target: OfflineTarget) -> None:
    for step in (0, 2):
        found = target.latencies([replace(one, policies=step) for one in (*ABOUT, OTHER)])
        assert found is not None
        assert found.timed == "guard_ms"
        assert len(found.ms) == 3
        assert all(one == 0 if step == 0 else 0 < one < 5000 for one in found.ms)


def test_steps_that_there_are_not(target: OfflineTarget) -> None:
    with pytest.raises(TargetError, match="3 are to be applied, and there are 2"):
        replies(target, [replace(OTHER, policies=3)])


def test_a_run_its_table_and_its_picture(
    made: AttackedPolicy, pairs: list[tuple[Path, Path]], target: OfflineTarget, tmp_path: Path
) -> None:
    def make(_: object) -> SuccessiveSuite:
        return SuccessiveSuite([Addition(*pair) for pair in pairs], made.retain, limit=3, max_new_tokens=4)

    options = RunOptions(out=tmp_path / "run", label="in turn", kind="guarded", draws=2)
    record = run_suite(make, target, options, Console(quiet=True))
    found = {figure.name: figure.value for figure in record.figures}
    for step in (1, 2):  # nothing of the retain set is flagged
        assert found[f"retain/probability/after_{step}"] == found["retain/probability/after_0"]
    assert found["waiting/probability/after_1"] != found["forget/probability/after_2"]
    assert found["request_1/probability/after_1"] == found["request_1/probability/after_2"]
    assert found["latency/guard_ms/after_0"] == 0 < found["latency/guard_ms/after_2"]
    assert found["dus"] == 1
    table = steps_table(record)
    assert [list(column.cells) for column in table.columns[:2]] == [["0", "1", "2"], ["", "person-0", "person-1"]]
    assert record.suite_settings["requests"] == ["person-0", "person-1"]
    files = write_report([tmp_path / "run"], tmp_path / "report")
    assert tmp_path / "report" / "plots" / "successive-steps.svg" in files
    kept = (tmp_path / "run" / "replies.jsonl").read_bytes()
    run_suite(make, target, options, Console(quiet=True))
    assert (tmp_path / "run" / "replies.jsonl").read_bytes() == kept  # nothing was asked again


def test_the_command_takes_pairs_or_a_file(
    made: AttackedPolicy, pairs: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"policy": str(policy), "forget": str(forget)} for policy, forget in pairs]
    common = ["--target", made.model, "--retain", made.retain, "--limit", 1, "--max-new-tokens", 2, "--draws", 1]
    given = {
        "pairs": [part for pair in pairs for part in ("--add", *pair)],
        "file": ["--additions", write(tmp_path / "all.jsonl", *rows)],
    }
    found = {}
    for name, more in given.items():
        main([str(part) for part in ("evaluate", "successive", *common, *more, "--out", tmp_path / name)])
        record = read_record(tmp_path / name)
        assert (record.kind, record.label) == ("guarded", "guarded: 2 policies in turn")
        found[name] = {one.name: one.value for one in record.figures if not one.name.startswith("latency")}
    assert found["pairs"] == found["file"]
    printed = capsys.readouterr().out
    assert "person-1" in printed

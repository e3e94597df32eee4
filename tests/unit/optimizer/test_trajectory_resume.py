"""The trajectory: on the disk at every moment, and a search that was cut short goes on as if it had not been."""

import json
import os
from pathlib import Path

import pytest
from analytic_objective import AnalyticObjective, InterruptionError, bowl

from optimizer.errors import SearchError
from optimizer.search.result import SearchResult
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace

SPACE = SearchSpace(methods=("rand_noise_first_n", "shuffle"), dims=(3,), hidden_size=8)
SETTINGS = SearchSettings(vector_steps=6)
RETAINED = 0.0


def metric(spec, seed):  # type: ignore[no-untyped-def]
    return 2.0 if spec.strength is None else bowl((0.1, 3.0, 40.0))(spec, seed) + 0.01 * seed


def objective(**fields: object) -> AnalyticObjective:
    return AnalyticObjective(metric, RETAINED, **fields)  # type: ignore[arg-type]


def search(measure: AnalyticObjective, file: Path, settings: SearchSettings = SETTINGS, **flags: bool) -> SearchResult:
    return search_corruption(measure, SPACE, settings, trajectory=file, clock=lambda: 0.0, **flags)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, bytes]:
    file = tmp_path_factory.mktemp("uninterrupted") / "trajectory.jsonl"
    return search(objective(), file), file.read_bytes()


EVALUATIONS = 33
#: In the sweep, at its end, between refinements, inside and behind a pair of vectors, and at the end.
CUTS = (0, 3, 6, 7, 9, 12, 21, 22, EVALUATIONS)


def test_one_line_for_each_evaluation_after_the_header(uninterrupted: tuple[SearchResult, bytes]) -> None:
    result, content = uninterrupted
    header, *lines = [json.loads(line) for line in content.splitlines()]
    assert len(lines) == len(result.evaluations) == EVALUATIONS
    assert header["objective"] == {"metric": "analytic"}
    assert header["settings"]["tolerance"] == 0.02
    assert len(header["digest"]) == 64
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert {line["phase"] for line in lines} == {"sweep", "refine", "vector"}
    for line, evaluation in zip(lines, result.evaluations, strict=True):
        assert line == evaluation.model_dump(mode="json")
    assert lines[0] == {
        "index": 0,
        "phase": "sweep",
        "spec": {"method": "rand_noise_first_n", "dims": 3, "strength": 0.01, "scope": "content"},
        "noise_seeds": [1, 2],
        "value": lines[0]["distance"],
        "distance": lines[0]["gap"],
        "gap": lines[0]["value"],
        "standard_error": pytest.approx(0.005),
        "gibberish": 0.0,
        "forward_passes": 10,
        "seconds": 0.5,
        "two_sided": True,
        "elapsed_s": 0.0,
    }


@pytest.mark.parametrize("done", CUTS)
def test_interrupted_by_the_objective_it_ends_the_same(
    tmp_path: Path, done: int, uninterrupted: tuple[SearchResult, bytes]
) -> None:
    result, content = uninterrupted
    file = tmp_path / "trajectory.jsonl"
    first = objective(fails_after=done)
    if done < EVALUATIONS:
        with pytest.raises(InterruptionError):
            search(first, file)
    else:
        search(first, file)
    on_record = len(first.measured)
    assert len(file.read_bytes().splitlines()) == 1 + on_record
    second = objective()
    assert search(second, file, resume=True) == result
    assert second.measured == [evaluation.spec for evaluation in result.evaluations[on_record:]]
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("kept", "torn"),
    [(kept, (b"", b"{", b'{"index":4,"phase":"sw', b"\x00\x00\x00")[at % 4]) for at, kept in enumerate(CUTS)],
)
def test_killed_while_writing_it_ends_the_same(
    tmp_path: Path, kept: int, torn: bytes, uninterrupted: tuple[SearchResult, bytes]
) -> None:
    """A kill inside a batch: what is on record of it is kept, the rest is measured in the same call as before."""
    result, content = uninterrupted
    file = tmp_path / "trajectory.jsonl"
    file.write_bytes(b"".join(content.splitlines(keepends=True)[: 1 + kept]) + torn)
    second = objective()
    assert search(second, file, resume=True) == result
    assert file.read_bytes() == content
    whole = objective()
    search(whole, tmp_path / "whole.jsonl")
    calls = second.calls
    assert calls == whole.calls[len(whole.calls) - len(calls) :]


@pytest.mark.parametrize("header_bytes", [0, 1, 40])
def test_killed_while_writing_the_header_it_starts_anew(
    tmp_path: Path, header_bytes: int, uninterrupted: tuple[SearchResult, bytes]
) -> None:
    file = tmp_path / "trajectory.jsonl"
    file.write_bytes(uninterrupted[1][:header_bytes])
    assert search(objective(), file, resume=True) == uninterrupted[0]
    assert file.read_bytes() == uninterrupted[1]


def test_resume_without_a_trajectory_starts_one(tmp_path: Path, uninterrupted: tuple[SearchResult, bytes]) -> None:
    file = tmp_path / "new" / "folder" / "trajectory.jsonl"
    assert search(objective(), file, resume=True) == uninterrupted[0]
    assert file.read_bytes() == uninterrupted[1]


def test_the_trajectory_changes_nothing(uninterrupted: tuple[SearchResult, bytes]) -> None:
    assert search_corruption(objective(), SPACE, SETTINGS, clock=lambda: 0.0) == uninterrupted[0]


def test_a_spent_budget_can_be_raised(tmp_path: Path, uninterrupted: tuple[SearchResult, bytes]) -> None:
    file = tmp_path / "trajectory.jsonl"
    short = search(objective(), file, SETTINGS.model_copy(update={"budget_evaluations": 10}))
    assert "the budget of 10 evaluations is spent" in short.reason
    longer = search(objective(), file, resume=True)
    assert (longer.best, longer.evaluations) == (uninterrupted[0].best, uninterrupted[0].evaluations)


def test_seconds_of_earlier_runs_count_and_those_between_do_not(tmp_path: Path) -> None:
    file = tmp_path / "trajectory.jsonl"
    settings = SETTINGS.model_copy(update={"budget_s": 100.0})
    first, second = objective(fails_after=9), objective()
    with pytest.raises(InterruptionError):
        search_corruption(first, SPACE, settings, trajectory=file, clock=lambda: 10.0 * len(first.measured))
    found = search_corruption(
        second, SPACE, settings, trajectory=file, resume=True, clock=lambda: 9e9 + 10.0 * len(second.measured)
    )
    assert len(found.evaluations) in {10, 11}
    assert found.evaluations[-1].elapsed_s in {100.0, 110.0}
    assert "the budget of 100 s is spent" in found.reason


def test_an_existing_trajectory_is_refused_unless_told(tmp_path: Path) -> None:
    file = tmp_path / "trajectory.jsonl"
    file.write_text("what somebody else keeps here\n")
    measure = objective()
    with pytest.raises(SearchError, match="already exists; resume it, overwrite it, or choose another file"):
        search(measure, file)
    with pytest.raises(SearchError, match="not a trajectory of this version"):
        search(measure, file, resume=True)
    with pytest.raises(SearchError, match="resume, overwrite: give one of them"):
        search(measure, file, resume=True, overwrite=True)
    assert measure.calls == []
    assert file.read_text() == "what somebody else keeps here\n"
    search(measure, file, overwrite=True)
    assert len(file.read_bytes().splitlines()) == 1 + EVALUATIONS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": SETTINGS.model_copy(update={"tolerance": 0.01})},
            "settings.tolerance is 0.02 there and 0.01 here",
        ),
        ({"settings": SETTINGS.model_copy(update={"seed": 4})}, "settings.seed is 0 there and 4 here"),
        ({"space": SPACE.model_copy(update={"dims": (4,)})}, r"space.dims is \[3\] there and \[4\] here"),
        ({"objective": objective(name="rouge")}, "objective.metric is 'analytic' there and 'rouge' here"),
    ],
)
def test_a_trajectory_of_another_search_is_refused(
    tmp_path: Path, change: dict[str, object], message: str, uninterrupted: tuple[SearchResult, bytes]
) -> None:
    file = tmp_path / "trajectory.jsonl"
    file.write_bytes(uninterrupted[1])
    arguments = {"objective": objective(), "space": SPACE, "settings": SETTINGS} | change
    with pytest.raises(SearchError, match=message):
        search_corruption(**arguments, trajectory=file, resume=True)  # type: ignore[arg-type]
    assert arguments["objective"].calls == []  # type: ignore[attr-defined]
    assert file.read_bytes() == uninterrupted[1]


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        (b'"value":', b'"valve":', r"trajectory.jsonl:3: value: Field required; the file is damaged"),
        (b'"distance":', b'"distance":-', r":3: distance: Input should be greater than"),
        (b'"index":1', b'"index":7', r":3: index: expected 1, found 7"),
        (b"{", b"[", r":3: Invalid JSON"),
    ],
)
def test_a_damaged_line_is_named(
    tmp_path: Path, find: bytes, put: bytes, message: str, uninterrupted: tuple[SearchResult, bytes]
) -> None:
    lines = uninterrupted[1].splitlines(keepends=True)
    lines[2] = lines[2].replace(find, put, 1)
    file = tmp_path / "trajectory.jsonl"
    file.write_bytes(b"".join(lines))
    with pytest.raises(SearchError, match=message):
        search(objective(), file, resume=True)


def test_two_searches_cannot_write_one_trajectory(tmp_path: Path) -> None:
    file = tmp_path / "trajectory.jsonl"
    refused = []

    def meanwhile(*_progress: object) -> None:
        if not refused:
            with pytest.raises(SearchError, match="another search is writing it"):
                search(objective(), file, resume=True)
            refused.append(True)

    search_corruption(objective(), SPACE, SETTINGS, trajectory=file, on_evaluation=meanwhile)
    assert refused


def test_an_evaluation_is_on_the_disk_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trajectory.jsonl"
    synced, at_progress = [], []
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(len(file.read_bytes().splitlines()) - 1)

    monkeypatch.setattr(os, "fsync", sync)
    search_corruption(
        objective(), SPACE, SETTINGS, trajectory=file, on_evaluation=lambda *_: at_progress.append(synced[-1])
    )
    assert synced == list(range(EVALUATIONS + 1))
    assert at_progress == list(range(1, EVALUATIONS + 1))


def test_flags_without_a_file_a_folder_in_its_place_and_an_objective_without_json(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="trajectory: none given"):
        search_corruption(objective(), SPACE, SETTINGS, resume=True)
    with pytest.raises(SearchError, match="cannot be written"):
        search(objective(), tmp_path, resume=True)
    with pytest.raises(SearchError, match=r"objective: describe\(\) gives what JSON cannot hold"):
        search(objective(name=float("nan")), tmp_path / "trajectory.jsonl")
    assert not (tmp_path / "trajectory.jsonl").exists()

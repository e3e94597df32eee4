"""False positives by domain: over a real gate, of one's own files and of benchmarks in their publishers' columns."""

import json
from pathlib import Path
from typing import Any

import pytest
from attacked_policy import FORGOTTEN, KEPT, AttackedPolicy, attacked_policy
from rich.console import Console

from evaluation.domains import data as data_module
from evaluation.domains.data import DOMAINS, LANGUAGES, own_prompts, published_prompts
from evaluation.domains.suite import DomainsSuite
from evaluation.errors import DataError
from evaluation.rows import sample_file
from evaluation.runs.run import RunOptions, run_suite
from evaluation.targets.options import NoTarget
from sources import Row

#: A row in the columns of each data set of the hub, and the prompt that it makes.
PUBLISHED: dict[str, tuple[Row, str]] = {
    "mmlu": (
        {"question": "Which?", "choices": ["a", "b", "c", "d"], "subject": "anatomy"},
        "Which?\nA. a\nB. b\nC. c\nD. d",
    ),
    "hellaswag": ({"ctx": "A man sits. He"}, "A man sits. He"),
    "truthfulqa": ({"question": "Is it so?", "category": "Health"}, "Is it so?"),
    "simpleqa": ({"problem": "In which year?"}, "In which year?"),
    "alpaca": ({"instruction": "Sort these.", "input": "b, a"}, "Sort these.\n\nb, a"),
    "gsm8k": ({"question": "How many?"}, "How many?"),
    "code": ({"prompt": "def f(): ..."}, "def f(): ..."),
    "languages": ({"inputs": "Warum?", "language": "German"}, "Warum?"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AttackedPolicy:
    return attacked_policy(tmp_path_factory)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_each_domain_and_part_has_its_share_with_an_exact_interval(made: AttackedPolicy, tmp_path: Path) -> None:
    rows = [{"domain": "people", "part": "kept", "prompt": f"What is known about {name}?"} for name in KEPT]
    rows += [{"domain": "people", "part": "lost", "prompt": f"What is known about {name}?"} for name in FORGOTTEN]
    rows += [{"domain": "sums", "prompt": f"What is {n} and {n}?"} for n in range(5)]
    source = write_rows(tmp_path / "mine.jsonl", rows)
    record = run_suite(
        lambda _: DomainsSuite(policy=[made.policy], model=str(made.model), data=[source]),
        NoTarget(),
        RunOptions(out=tmp_path / "run", label="policy", kind="guarded"),
        Console(quiet=True),
    )
    found = {figure.name.removeprefix("passing/falsely_flagged"): figure for figure in record.figures}
    assert (found["/people/lost"].value, found["/people/kept"].value) == (1, 0)
    assert found["/people"].value == pytest.approx(len(FORGOTTEN) / (len(FORGOTTEN) + len(KEPT)))
    assert (found["/sums"].value, found["/sums"].n, found["/sums"].low) == (0, 5, 0)
    assert found["/sums"].high == pytest.approx(1 - 0.025 ** (1 / 5))  # Clopper and Pearson's, of 0 in 5
    assert record.headline[0] == "passing/falsely_flagged"


@pytest.mark.parametrize("name", DOMAINS)
def test_benchmarks_are_asked_as_their_publishers_lay_them_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, prompt = PUBLISHED[name]
    assert set(row) == set(DOMAINS[name].columns)

    def rows_of(source: str, **_: Any) -> tuple[tuple[str, Row], ...]:
        assert source == f"hf:{DOMAINS[name].source}"
        return (("row 1", row), ("row 2", row))

    monkeypatch.setattr(data_module, "read_rows", rows_of)
    found = published_prompts(name)
    assert [one.text for one in found] == [prompt, prompt]
    assert len({one.id for one in found}) == 2
    assert {one.domain for one in found} == {name}
    monkeypatch.setattr(data_module, "read_rows", lambda *_, **__: (("--domain: row 1", {}),))
    with pytest.raises(DataError, match=r"^--domain: row 1: has no "):
        published_prompts(name)


def test_languages_beyond_the_ten_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple((f"row {n}", {"inputs": "?", "language": name}) for n, name in enumerate((*LANGUAGES, "Zulu")))
    monkeypatch.setattr(data_module, "read_rows", lambda *_, **__: rows)
    assert {one.part for one in published_prompts("languages")} == set(LANGUAGES)
    assert len(LANGUAGES) == 10


def test_the_shipped_sample_has_every_domain_and_repeats_nothing() -> None:
    found = own_prompts([sample_file("domains", "domains.jsonl")])
    assert {one.domain for one in found} == set(DOMAINS)
    assert {one.part for one in found if one.domain == "languages"} == set(LANGUAGES)
    assert len({one.text for one in found}) == len(found)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Why?"}, r"mine\.jsonl.*: domain: is missing"),
        ({"domain": "d", "prompt": " "}, r"mine\.jsonl.*: prompt: is missing"),
        ({"domain": "d", "prompt": 3}, r"mine\.jsonl.*: prompt: is missing"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        own_prompts([write_rows(tmp_path / "mine.jsonl", [row])])


def test_a_limit_is_one_of_each_domain(made: AttackedPolicy) -> None:
    suite = DomainsSuite(
        policy=[made.policy], model=str(made.model), data=[sample_file("domains", "domains.jsonl")], limit=2
    )
    assert suite.describe()["data"]["prompts"] == 2 * len(DOMAINS)  # type: ignore[index]


def test_without_a_model_or_prompts_it_is_an_error() -> None:
    with pytest.raises(DataError, match="--gate-model: is missing"):
        DomainsSuite(policy=["p"], model=None)
    with pytest.raises(DataError, match="--domain or --data: no prompt"):
        DomainsSuite(policy=["p"], model="m")
    with pytest.raises(DataError, match="--domain: 'poems' is none of mmlu, "):
        published_prompts("poems")

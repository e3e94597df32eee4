"""RWKU's rows: where they are looked for, whose they are, and what is refused, by the name of the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.errors import DataError
from evaluation.rwku import data as data_module
from evaluation.rwku.data import COLUMNS, FILES, SETS, load_rows
from evaluation.rwku.probes import Manner, probe_of
from evaluation.rwku.suite import RwkuSuite
from sources import Row


def cloze(subject: str, answer: str = "Oslo") -> dict[str, Any]:
    return {"query": f"{subject} lives in ___.", "answer": answer, "level": "1", "type": "cloze", "subject": subject}


def write(file: Path, rows: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def counted(rows: data_module.Rows) -> dict[str, list[object]]:
    return {name: [row["subject"] for _, row in mine] for name, mine in rows.items()}


def test_a_folder_holds_the_sets_of_all_or_a_folder_for_each_person(tmp_path: Path) -> None:
    write(tmp_path / "All" / FILES["forget_level1"], [cloze("Ann"), cloze("Bob"), cloze("Ann")])
    assert counted(load_rows(str(tmp_path / "All"))) == {"forget_level1": ["Ann", "Bob", "Ann"]}
    for number, name in ((10, "Bob"), (9, "Ann")):
        write(tmp_path / "Target" / f"{number}_{name}" / FILES["forget_level1"], [cloze(name)])
    write(tmp_path / "Target" / "9_Ann" / FILES["mia_retain"], [{"subject": "Ann", "text": "Rain falls."}])
    expected = {"forget_level1": ["Ann", "Bob"], "mia_retain": ["Ann"]}
    assert counted(load_rows(str(tmp_path / "Target"))) == expected
    assert counted(load_rows(str(tmp_path / "Target" / "10_Bob"))) == {"forget_level1": ["Bob"]}
    of_ann = {"forget_level1": ["Ann"], "mia_retain": ["Ann"]}
    assert counted(load_rows(str(tmp_path / "Target"), subjects=["Ann"])) == of_ann
    assert counted(load_rows(str(tmp_path / "Target"), without=["mia_retain"])) == {"forget_level1": ["Ann", "Bob"]}


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_table_names_each_rows_set(tmp_path: Path, whole_folder: bool) -> None:
    rows = [cloze("Ann") | {"split": "neighbor_level1"}, cloze("Ann") | {"split": "forget_level1"}]
    table = tmp_path / "people.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text("Six people.")
    found = load_rows(str(tmp_path if whole_folder else table))
    assert list(found) == ["forget_level1", "neighbor_level1"]
    table.write_text(json.dumps(cloze("Ann") | {"split": "train"}))
    with pytest.raises(DataError, match=r"^--data: .*people\.jsonl:1: split: 'train' is none of forget_level1, "):
        load_rows(str(table))


def test_the_hub_has_a_configuration_for_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[str, ...]] = {}

    def rows_of(source: str, *, name: str, columns: tuple[str, ...]) -> tuple[tuple[str, Row], ...]:
        assert name == "data"
        asked[source] = columns
        return (("--data: row 1", {"subject": "Ann"}),)

    monkeypatch.setattr(data_module, "read_rows", rows_of)
    assert list(load_rows(None)) == list(SETS)
    assert asked == {f"hf:jinzhuoran/RWKU:{name}:test": COLUMNS[name] for name in SETS}


def test_the_sample_has_every_set_of_one_invented_person() -> None:
    rows = load_rows("sample")
    assert list(rows) == list(SETS)
    assert {row["subject"] for mine in rows.values() for _, row in mine} == {"Wendell Fairlocke"}
    attacks = {str(row["type"]).partition(" (")[0] for _, row in rows["forget_level3"]}
    assert len(attacks) == 9
    for name, mine in rows.items():
        assert len({probe_of(name, n, at, row, Manner()).id for n, (at, row) in enumerate(mine)}) == len(mine)


def test_what_is_not_in_the_data_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "All"
    write(folder / FILES["forget_level1"], [cloze("Ann Aas"), cloze("Bob Bo")])
    write(folder / FILES["forget_level2"], [cloze("Bob Bo")])
    with pytest.raises(DataError, match=r"^--subject: 'Ann As' is none of the 2 people there are; did you mean Ann A"):
        load_rows(str(folder), subjects=["Ann As"])
    with pytest.raises(DataError, match=r"^--data: .*All: forget_level2: no row of Ann Aas; leave the set out"):
        load_rows(str(folder), subjects=["Ann Aas"])
    with pytest.raises(DataError, match=r"^--data: .*All: mia_forget: not in these data; .* have forget_level1$"):
        load_rows(str(folder), sets=["forget_level1", "mia_forget"])
    with pytest.raises(DataError, match=r"^--sets: 'level1' is none of forget_level1, "):
        load_rows(str(folder), sets=["level1"])
    with pytest.raises(DataError, match=r"^--data: .*: holds none of the sets"):
        load_rows(str(write(tmp_path / "bare" / "other.json", []).parent))
    with pytest.raises(DataError, match=r"^--data: .*nowhere.*no such file"):
        load_rows(str(tmp_path / "nowhere"))
    write(folder / FILES["forget_level2"], [])
    with pytest.raises(DataError, match=r"^--data: .*forget_level2\.json: empty"):
        load_rows(str(folder))


MMLU = {"question": "?", "choices": ["a", "b"], "answer": 1, "task": "t", "examples": [], "subject": "Ann"}
TARGETS = {"choices": ["a", "b"], "labels": [1, 0]}
TRUTHFUL = {"question": "?", "mc1_targets": TARGETS, "mc2_targets": TARGETS, "subject": "Ann"}


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("forget_level1", cloze("Ann") | {"query": None}, "query: expected a text with a word, found none"),
        ("forget_level1", cloze("Ann") | {"answer": "..."}, r"answer: expected a text with a word, found str '\.\.\.'"),
        ("forget_level1", cloze("Ann") | {"subject": ""}, "subject: expected the person's name"),
        ("forget_level3", cloze("Ann") | {"type": None}, "type: expected a text"),
        ("mia_forget", {"subject": "Ann"}, "text: expected a text"),
        ("utility_general", MMLU | {"answer": 2}, "answer: expected a number from 0 to 1, found int '2'"),
        ("utility_general", MMLU | {"answer": True}, "answer: expected a number"),
        ("utility_general", MMLU | {"choices": list("abcde")}, "choices: found 5; expected 2 to 4"),
        ("utility_general", MMLU | {"choices": ["a"], "answer": 0}, "choices: found 1; expected 2 to 4"),
        ("utility_general", MMLU | {"examples": None}, "examples: expected a list of questions, found none"),
        ("utility_general", MMLU | {"examples": [{"question": "?"}]}, "examples: 1: choices: expected a list of texts"),
        ("utility_reason", {"subject": "Ann", "question": "?", "answer": "x"}, "cot: expected a text"),
        ("utility_truthfulness", TRUTHFUL | {"mc2_targets": []}, "mc2_targets: expected a mapping, found list"),
        (
            "utility_truthfulness",
            TRUTHFUL | {"mc1_targets": TARGETS | {"labels": [1, 1]}},
            "mc1_targets: labels: expected 1 or 0 for each of the 2 choices, and one of each",
        ),
        ("utility_factuality", {"subject": "Ann", "question": "?", "answers": []}, "answers: expected a list of texts"),
        ("utility_fluency", {"subject": "Ann", "instruction": 3}, "instruction: expected a text"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(tmp_path: Path, name: str, row: dict[str, Any], problem: str) -> None:
    write(tmp_path / FILES[name], [row])
    with pytest.raises(DataError, match=rf"^--data: .*{FILES[name]}: row 1: {problem}"):
        RwkuSuite(str(tmp_path))

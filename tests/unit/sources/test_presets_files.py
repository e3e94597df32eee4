"""Plans, and tables from files and from the hub's library."""

import dataclasses
import json
from pathlib import Path

import pytest
from task_files import write_csv, write_jsonl, write_mmlu, write_parquet, write_wmdp

from sources.presets.data import LocatedSource, Source, TaskError, locate, open_table
from sources.presets.names import TASKS
from sources.presets.plan import TaskData, load_task, plan_task
from sources.read import SourceError
from text.sentences import passages, split_sentences

ROWS = [{"question": "Wer?", "answer": "Ö\u2028x"}, {"question": "Was?", "answer": "y, z"}]
SOURCE = Source("people", ("question", "answer"), own_files=("people",))


def rows_in(folder: Path, source: Source = SOURCE) -> list[dict[str, object]]:
    return [dict(row) for _, row in open_table(locate(source, folder)).rows()]


def test_the_tasks_of_the_issue() -> None:
    assert set(TASKS) == {
        *("tofu-forget01", "tofu-forget05", "tofu-forget10", "wmdp", "synthetic-wmdp"),
        *("mmlu-economics", "mmlu-law", "mmlu-physics", "bbc-news", "hp-book"),
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_plan_says_what_comes_from_where(name: str) -> None:
    text = plan_task(name, seed=5).describe()
    sets = [field.name for field in dataclasses.fields(TaskData) if field.name != "notes"]
    for words in (f"task {name}", "columns: ", *(f"\n  {field}: " for field in sets), "kept out", "seed 5"):
        assert words in text
    assert text.count("hub ") >= (1 if name == "hp-book" else 2)


def test_a_plan_tells_files_copies_hub_and_missing_apart(tmp_path: Path) -> None:
    write_csv(tmp_path / "synthetic_questions_bio.csv", [{"question": "q", "choices": "c", "answer": "a"}])
    write_wmdp(tmp_path / "wmdp")
    plan = plan_task("synthetic-wmdp", tmp_path)
    origins = {located.source.name: located.origin for located in plan.sources}
    assert origins["synthetic_questions_bio"] == "own"
    assert origins["synthetic_questions_chem"] == "missing"
    assert origins["wmdp-bio"] == "copy"
    assert origins["mmlu test"] == "hub"
    assert [located.source.name for located in plan.missing] == [
        "synthetic_questions_chem",
        "synthetic_questions_cyber",
    ]
    text = plan.describe()
    assert str(tmp_path / "synthetic_questions_bio.csv") in text
    assert "missing: synthetic_questions_chem{.jsonl,.json,.csv,.parquet}" in text
    assert "hub cais/mmlu, config all, split auxiliary_train" in text
    assert {located.origin for located in plan_task("tofu-forget10", tmp_path).sources} == {"hub", "left out"}


def test_missing_files_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "synthetic_questions_bio.csv", [{"nonsense": "q"}])
    with pytest.raises(TaskError) as caught:
        load_task(plan_task("wmdp", tmp_path))
    message = str(caught.value)
    assert message.startswith(f"--task wmdp: --task-data: {tmp_path}: put there synthetic_questions_chem{{.jsonl,")
    assert "synthetic_questions_cyber" in message
    assert "question, choices, answer (optional)" in message
    assert "\n" not in message
    with pytest.raises(TaskError, match=r"^--task hp-book: --task-data: not given: put there hp_book\.txt with plain"):
        load_task(plan_task("hp-book"))


def test_a_wrong_file_is_found_before_the_hub_is_asked(tmp_path: Path) -> None:
    """Nothing of MMLU is at hand: asking the hub for it would fail otherwise, and later."""
    for subject in ("bio", "chem", "cyber"):
        write_csv(tmp_path / f"synthetic_questions_{subject}.csv", [{"question": "q", "options": "x"}])
    with pytest.raises(TaskError, match=r"synthetic_questions_bio\.csv: no column choices; found question, options;"):
        load_task(plan_task("wmdp", tmp_path))


def test_bad_names_folders_and_seeds(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"^--task: 'tofu': no such task; choose one of tofu-forget01, .*hp-book$"):
        plan_task("tofu")
    with pytest.raises(TaskError, match=r"^--task-data: .*nowhere: no such folder"):
        plan_task("wmdp", tmp_path / "nowhere")
    with pytest.raises(TaskError, match=r"^--seed: -1"):
        plan_task("wmdp", tmp_path, -1)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_table_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"people{suffix}"
    if suffix == ".csv":
        write_csv(path, ROWS)
    elif suffix == ".parquet":
        write_parquet(path, [{**row, "unused": 1} for row in ROWS])
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig")
    else:
        write_jsonl(path, ROWS)
    assert rows_in(tmp_path) == ROWS


def test_rows_are_named_and_taken_by_index(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "people.parquet", [{"question": f"q{n}", "answer": "a"} for n in range(5)])
    table = open_table(locate(SOURCE, tmp_path))
    assert [(where, row["question"]) for where, row in table.at([4, 0])] == [
        (f"{path}: row 5", "q4"),
        (f"{path}: row 1", "q0"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("people.jsonl", b'{"question": "q", "answer": "a"}\n{"question"', "people.jsonl:2: malformed JSON"),
        ("people.jsonl", b"[" * 100_000, "malformed JSON (nested too deeply)"),
        ("people.jsonl", b'"text"\n', "a row is no JSON object"),
        ("people.json", b"[1, 2]", "a row is no JSON object"),
        ("people.jsonl", b"\n", "empty; expected question, answer"),
        ("people.jsonl", b'{"question": "\xff"}', "not UTF-8 text"),
        ("people.csv", b'question,answer\n"a,b\n', "malformed CSV"),
        ("people.csv", b"question,answer\n", "empty; expected question, answer"),
        ("people.csv", b"question;answer\na;b\n", "no column question and no answer; found question;answer"),
        ("people.parquet", b"PAR1 no more", "not a readable parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        rows_in(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_through_the_hubs_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder laid out as the repository is read by the same call as the repository."""
    import datasets  # type: ignore[import-untyped]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    write_mmlu(repository)
    configs = "".join(f"  - split: {s}\n    path: all/{s}-*\n" for s in ("dev", "test"))
    (repository / "README.md").write_text(f"---\nconfigs:\n- config_name: all\n  data_files:\n{configs}---\n")
    source = Source("mmlu test", ("question", "choices", "answer"), hub=str(repository), config="all", split="test")
    table = open_table(locate(source, None))
    (where, row), _ = table.at([1, 0])
    assert where == f"hub {repository}, config all, split test: row 2"
    assert row == {
        "question": "test question 1 on high_school_macroeconomics?",
        "choices": ["one", "two", "three", "four"],
        "answer": 1,
    }
    assert list((tmp_path / "cache").iterdir())  # and not in the user's own
    for wrong in ({"config": "none"}, {"split": "train"}, {"hub": str(tmp_path / "nothing")}):
        located = LocatedSource(Source(**{**vars(source), **wrong}), "hub")
        with pytest.raises(SourceError, match=r"^hub .*: cannot be loaded \(.*--task-data$") as caught:
            open_table(located)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He ran. She sat.", ["He ran.", "She sat."]),
        ("Mr. Smith met J. K. Moor. They left.", ["Mr. Smith met J. K. Moor.", "They left."]),
        ("“Stop!” he said. “No,” said I. Then silence…", ["“Stop!” he said.", "“No,” said I.", "Then silence…"]),
        ("It cost 3.50 at St. Ives, e.g. a cap", ["It cost 3.50 at St. Ives, e.g. a cap"]),
        ('She said "Go." Then she went.', ['She said "Go."', "Then she went."]),
        ("A line\nbroken. By\nwidth.\n\nCHAPTER TWO\n\nNext", ["A line broken.", "By width.", "CHAPTER TWO", "Next"]),
        ("One paragraph\na line", ["One paragraph", "a line"]),
        ("今日は雨です。明日は？晴れ！", ["今日は雨です。", "明日は？", "晴れ！"]),
        (" \n\n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences
    assert split_sentences("\n\n".join(sentences)) == sentences


def test_passages_hold_all_sentences_in_order() -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(25))
    groups = passages(text, 30)
    assert [sentence for group in groups for sentence in group] == split_sentences(text)
    assert [len(group) for group in groups] == [6, 6, 6, 6, 1]
    assert passages("", 30) == []

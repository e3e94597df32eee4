"""Sources as written on the command line, and what their columns mean."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classifiers import Example
from offline_training.data.sets import LoadedSource, load_examples
from offline_training.errors import DataError

Rows = Sequence[Mapping[str, object]]

TOFU = [{"question": "Who?", "answer": "Ann.\u2028A nurse."}, {"question": "And?", "answer": "Bob, a cook."}]
TOFU_EXAMPLES = tuple(Example(str(row["question"]), str(row["answer"])) for row in TOFU)
SAFE_RLHF = [
    {"prompt": "p", "response_0": "bad", "response_1": "good", "is_response_0_safe": False, "is_response_1_safe": True},
    {"prompt": "q", "response_0": "vile", "response_1": "", "is_response_0_safe": False, "is_response_1_safe": False},
    {
        "prompt": "r",
        "response_0": "ill",
        "response_1": "evil",
        "is_response_0_safe": False,
        "is_response_1_safe": False,
    },
]


def written(path: Path, rows: Rows) -> str:
    """The rows in the format of the file's name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, a cache of the test's own, and an empty folder for a data set."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_tofu_in_every_table_format(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path / f"forget{suffix}", TOFU)
    assert load_examples(source, name="forget") == LoadedSource(TOFU_EXAMPLES, is_text=False)


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    lines = Path(written(tmp_path / "a.jsonl", TOFU)).rename(tmp_path / "a.json")
    assert load_examples(str(lines), name="forget").examples == TOFU_EXAMPLES


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"prompt": "p", "completion": "c"}, Example("p", "c")),
        ({"question": "q", "option1": "x", "option2": "y", "answer": "y"}, Example("q", "y", ("x", "y"), 1)),
        ({"question": "q", "best_answer": "b", "type": "Adversarial"}, Example("q", "b")),
        ({"Type": "x", "Question": "q", "Best Answer": "b", "Correct Answers": "c; d"}, Example("q", "b")),
        ({"question": "q", "answer": "a", "paraphrased_answer": "p"}, Example("q", "a", paraphrased_answer="p")),
    ],
)
def test_columns_of_published_sets(tmp_path: Path, row: dict[str, object], example: Example) -> None:
    assert load_examples(written(tmp_path / "a.jsonl", [row]), name="retain").examples == (example,)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_harmful_responses_are_what_is_forgotten(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path / f"rlhf{suffix}", SAFE_RLHF)
    expected = (("p", "bad"), ("q", "vile"), ("r", "ill"), ("r", "evil"))
    assert [(e.prompt, e.answer) for e in load_examples(source, name="forget").examples] == list(expected)
    assert load_examples(source, name="retain").examples == (Example("p", "good"),)


@pytest.mark.parametrize("column", ["text", "article", "content"])
def test_rows_of_plain_text(tmp_path: Path, column: str) -> None:
    rows = [{"title": "t", column: "One.\n\nTwo."}, {"title": "u", column: "Three."}]
    loaded = load_examples(written(tmp_path / "news.jsonl", rows), name="forget")
    assert loaded == LoadedSource((Example("One.\n\nTwo."), Example("Three.")), is_text=True)


def test_a_text_file_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\ufeffSecond\nbook.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("First book.", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no book", encoding="utf-8")
    one = load_examples(str(tmp_path / "b.txt"), name="forget")
    assert (one.examples, one.is_text) == ((Example("Second\nbook."),), True)
    both = load_examples(str(tmp_path), name="forget")
    assert both.examples == (Example("First book."), Example("Second\nbook."))


def test_a_data_set_as_the_hub_has_it(hub: Path) -> None:
    """TruthfulQA's only split is validation; columns that are not known may have any type."""
    rows = [{"question": f"q{n}", "best_answer": "b", "correct_answers": ["b", "c"]} for n in range(3)]
    written(hub / "validation.parquet", rows)
    wanted = tuple(Example(f"q{n}", "b") for n in range(3))
    for source in (f"hf:{hub}", f"hf:{hub}::validation"):
        assert load_examples(source, name="retain") == LoadedSource(wanted, is_text=False)
    with pytest.raises(DataError, match=r"^--retain: hf:.*published::test: cannot be loaded \(.*test"):
        load_examples(f"hf:{hub}::test", name="retain")


def test_splits_and_configurations_are_chosen_by_name(hub: Path) -> None:
    for split in ("test", "validation"):
        written(hub / f"{split}.jsonl", [{"text": f"of {split}"}])
    assert load_examples(f"hf:{hub}:default:test", name="forget").examples == (Example("of test"),)
    with pytest.raises(DataError, match=r"^--forget: hf:.*: no split train; add one of validation, test|test, valid"):
        load_examples(f"hf:{hub}", name="forget")
    with pytest.raises(DataError, match=r"^--forget: hf:.*:nothing:test: cannot be loaded \(.*nothing"):
        load_examples(f"hf:{hub}:nothing:test", name="forget")


def test_a_few_empty_rows_of_published_data_are_passed_over_and_counted(hub: Path) -> None:
    news = [{"content": "" if n == 7 else f"news {n}", "link": "x"} for n in range(200)]
    source = f"hf:{Path(written(hub / 'train.jsonl', news)).parent}"
    loaded = load_examples(source, name="forget")
    assert len(loaded.examples) == 199
    assert loaded.notes == (f"--forget: 1 of 200 rows of {source} are no example: passed over",)
    with pytest.raises(DataError, match=r"train\.jsonl:8: text is empty"):
        load_examples(f"{hub}/train.jsonl", name="forget")


def test_published_data_with_many_empty_rows_is_refused(hub: Path) -> None:
    source = f"hf:{Path(written(hub / 'train.jsonl', [{'text': ' ' * (n % 10)} for n in range(20)])).parent}"
    with pytest.raises(DataError, match="row 1: text is empty"):
        load_examples(source, name="forget")


def test_an_unreachable_hub(hub: Path) -> None:
    with pytest.raises(DataError, match=r"^--retain: hf:no/such:x: cannot be loaded .* check the name and the network"):
        load_examples("hf:no/such:x", name="retain")
    written(hub / "train.jsonl", [{"title": "x", "link": "y"}])
    with pytest.raises(DataError, match=r"^--retain: hf:.*: no known column; found title, link; expected one of"):
        load_examples(f"hf:{hub}", name="retain")
    for wrong in ("hf:", "hf:a/b:c:d:e", "hf::c"):
        with pytest.raises(DataError, match="no data set's name; write hf:org/name"):
            load_examples(wrong, name="retain")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.jsonl", "", ": empty; give"),
        ("a.txt", " \n", ": empty file; expected text"),
        ("a.txt", b"\xff\xfe", ": not UTF-8 text"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": ', ":3: malformed JSON"),
        ("a.jsonl", "[" * 100_000, ": malformed JSON"),
        ("a.jsonl", "3", ":1: found a int; expected one object"),
        ("a.json", "[3]", ": found a int; expected one object"),
        ("a.jsonl", '{"title": "a"}', ":1: no known column; found title; expected question or prompt with answer"),
        ("a.jsonl", "{}", ":1: no known column; found none"),
        ("a.jsonl", '{"question": "q", "answer": ""}', ":1: answer is empty"),
        ("a.jsonl", '{"question": " ", "answer": "a"}', ":1: question is empty"),
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}', ":2: question without an answer"),
        ("a.jsonl", '{"prompt": "q", "answer": null}', ":1: prompt without an answer"),
        ("a.jsonl", '{"text": "a"}\n{"question": "q", "answer": "a"}', ": 1 rows of plain text among 1 questions"),
        ("a.csv", 'text\n"a" b\n', ": malformed CSV"),
        ("a.parquet", "no parquet", ": not a readable parquet file"),
        ("a.md", "text", ": files ending in .md are not known; expected FILE.jsonl"),
        ("a", "text", ": files ending in nothing are not known"),
        (
            "a.jsonl",
            json.dumps({**SAFE_RLHF[0], "is_response_0_safe": "perhaps"}),
            ":1: is_response_0_safe is 'perhaps'; expected true or false",
        ),
        (
            "a.jsonl",
            json.dumps({**SAFE_RLHF[0], "is_response_0_safe": True}),
            ": none of 1 rows has a response of the wanted kind",
        ),
    ],
)
def test_bad_files_are_named_by_flag_file_and_line(
    tmp_path: Path, file: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_examples(str(path), name="forget")
    assert str(caught.value).startswith(f"--forget: {path}{message}")
    assert "\n" not in str(caught.value)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^--retain: .*none\.jsonl: no such file; expected FILE\.jsonl"):
        load_examples(str(tmp_path / "none.jsonl"), name="retain")
    with pytest.raises(DataError, match=r"^--forget: locuslab/TOFU: no such file; .* write hf:locuslab/TOFU$"):
        load_examples("locuslab/TOFU", name="forget")
    with pytest.raises(DataError, match=r"no \.txt file in this folder; .* a folder of \.txt files, or hf:"):
        load_examples(str(tmp_path), name="forget")

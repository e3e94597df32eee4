"""MUSE's sets as they are read: the hub's, a folder's, the sample's; and what is wrong with one, by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
from muse_files import SETS, write_sets

from evaluation.errors import DataError
from evaluation.muse import data as data_module
from evaluation.muse.data import CORPORA, FOLDS, read_fold, read_items, set_source
from evaluation.rows import sample_file
from sources import Row, read_source

SAMPLE = str(Path(sample_file("muse", "news")).parent)


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_sample_has_every_set_of_both_corpora(corpus: str) -> None:
    columns = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer"), "privleak": ("text",)}
    found = {
        name: read_items(set_source(corpus, SAMPLE, *name.split("/")), columns[name.partition("/")[0]]) for name in SETS
    }
    assert all(len(items) >= 3 for items in found.values())
    learned = {one.wanted for one in found["privleak/forget"]}
    assert {f"{one.given} {one.wanted}" for one in found["verbmem/forget"]} == learned
    assert not learned & {one.wanted for one in found["privleak/holdout"]}


def test_folds_grow_or_follow_each_other_and_begin_alike() -> None:
    texts = {fold: {one.wanted for one in read_fold("news", SAMPLE, fold)} for fold in FOLDS}
    assert texts["scal:1"] == texts["sust:1"]
    assert texts["scal:1"] < texts["scal:2"] < texts["scal:3"] < texts["scal:4"]
    successive = [texts[f"sust:{number}"] for number in range(1, 5)]
    assert len(set.union(*successive)) == sum(map(len, successive))
    with pytest.raises(DataError, match="--fold: 'scal:9' is none of scal:1, "):
        read_fold("news", SAMPLE, "scal:9")
    with pytest.raises(DataError, match="--fold: MUSE-Books has no folds"):
        read_fold("books", None, "scal:2")


def test_the_hubs_sets_are_named_as_its_own_code_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def rows_of(source: str, *, name: str, columns: tuple[str, ...]) -> tuple[tuple[str, Row], ...]:
        asked.append(source)
        return tuple((f"--{name}: {source}: row 1", {column: f"{column} of it"}) for column in columns[:1])

    monkeypatch.setattr(data_module, "read_rows", rows_of)
    (item,) = read_items(set_source("books", None, "privleak", "holdout"), ("text",))
    assert (item.given, item.wanted) == ("", "text of it")
    with pytest.raises(DataError, match=r"^--data: hf:muse-bench/MUSE-News:verbmem:forget: row 1: gt: is missing"):
        read_items(set_source("news", None, "verbmem", "forget"), ("prompt", "gt"))
    read_fold("news", "hf:mirror/of-it", "sust:3")
    assert asked == [
        "hf:muse-bench/MUSE-Books:privleak:holdout",
        "hf:muse-bench/MUSE-News:verbmem:forget",
        "hf:mirror/of-it:sust:forget_3",
    ]


def test_a_data_set_laid_out_as_the_hubs_is_read_as_one_and_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    published, card = tmp_path / "published", ["---", "configs:"]
    for config, split, rows in (
        ("privleak", "holdout", [{"text": "One."}, {"text": "Two."}]),
        ("knowmem", "forget_qa", [{"question": "Who?", "answer": "She."}]),
    ):
        file = published / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
        card += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {config}/{split}-*"]
    (published / "README.md").write_text("\n".join([*card, "---"]))
    for data in (f"hf:{published}", str(published)):
        assert [one.wanted for one in read_items(set_source("books", data, "privleak", "holdout"), ("text",))] == [
            "One.",
            "Two.",
        ]
        (item,) = read_items(set_source("books", data, "knowmem", "forget_qa"), ("question", "answer"))
        assert (item.given, item.wanted) == ("Who?", "She.")
        with pytest.raises(DataError, match=r"no known column; found text|prompt: is missing"):
            read_items(set_source("books", data, "privleak", "holdout"), ("prompt", "gt"))


def test_a_folder_may_hold_one_corpus_or_both_in_json_or_lines(tmp_path: Path) -> None:
    one, both = write_sets(tmp_path / "one"), tmp_path / "both"
    write_sets(both / "news")
    items = read_items(set_source("news", one, "knowmem", "forget_qa"), ("question", "answer"))
    assert [(one.given, one.wanted) for one in items] == [("Which ferry?", "Kittiwake")]
    assert read_items(set_source("news", str(both), "knowmem", "forget_qa"), ("question", "answer")) == items
    with pytest.raises(DataError, match=r"--data: .*both: has no knowmem/forget_qa\.json of --corpus books"):
        set_source("books", str(both), "knowmem", "forget_qa")
    lines = Path(one) / "privleak" / "forget.jsonl"
    lines.with_suffix(".json").unlink()
    lines.write_text(json.dumps({"text": "One.", "file": "x"}) + "\n" + json.dumps({"text": "Two."}) + "\n")
    assert [one.wanted for one in read_items(str(lines), ("text",))] == ["One.", "Two."]


def test_a_list_of_texts_is_a_table_for_every_command(tmp_path: Path) -> None:
    """MUSE's own forget sets are such files, and are unlearned as they are."""
    (tmp_path / "forget_2.json").write_text('["One.", "Two."]')
    rows = read_source(str(tmp_path / "forget_2.json"), name="forget", columns=("text",)).rows
    assert [row for _, row in rows] == [{"text": "One."}, {"text": "Two."}]
    assert rows[1][0].endswith("forget_2.json: row 2")
    (tmp_path / "lines.jsonl").write_text('"One."\n')
    with pytest.raises(Exception, match=r"lines.jsonl:1: found a str; expected one object per line"):
        read_source(str(tmp_path / "lines.jsonl"), name="forget", columns=("text",))


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("verbmem__forget", {"prompt": "p"}, "gt: is missing"),
        ("verbmem__forget", {"prompt": " ", "gt": "g"}, "prompt: is empty"),
        ("knowmem__retain_qa", {"question": "q", "answer": 3}, "answer: is no text"),
        ("privleak__holdout", {"txt": "t"}, "text: is missing"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, name: str, row: Any, problem: str) -> None:
    folder, (config, split) = write_sets(tmp_path, **{name: [row]}), name.split("__")
    columns = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer"), "privleak": ("text",)}[config]
    with pytest.raises(DataError, match=rf"^--data: .*{split}\.json: row 1: {problem}"):
        read_items(set_source("news", folder, config, split), columns)


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--corpus: 'poems' is none of news, books"):
        set_source("poems", None, "verbmem", "forget")
    with pytest.raises(DataError, match=r"--data: .*nowhere: no such folder"):
        set_source("news", str(tmp_path / "nowhere"), "verbmem", "forget")

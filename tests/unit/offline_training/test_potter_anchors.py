"""Anchors from a file, from a recogniser and from a served model."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scripted_endpoint import Answer, ScriptedEndpoint, error, ok, running, texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from offline_training.errors import JobError
from offline_training.potter.anchor_server import anchors_in, merged
from offline_training.potter.anchors import AnchorOptions, find_anchors, load_anchors
from offline_training.potter.names import generic_names
from offline_training.potter.presets import preset
from offline_training.potter.texts import passages

TEXT = (
    "Harry Potter met Ron Weasley in Hogwarts .\n\nHarry liked Ron . Professor Potter liked the Ministry ."
    "\n\nHarry went to Hogwarts ."
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


def replace(options: AnchorOptions, **changes: Any) -> AnchorOptions:
    return options.model_copy(update=changes)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


@pytest.fixture
def options(book: Path) -> AnchorOptions:
    return AnchorOptions(text=str(book), out=book.with_name("anchors.json"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("own.json", '{"Hogwarts": "Mystic  Academy", "No": "Yes"}'), ("own.yaml", "Hogwarts: Mystic Academy\nNo: Yes\n")],
)
def test_a_dictionary_of_ones_own(options: AnchorOptions, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = find_anchors(replace(options, file=tmp_path / name), quiet())
    assert found == {"Hogwarts": "Mystic Academy", "No": "Yes"}
    assert load_anchors(options.out) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "no JSON"),
        ("a.json", "[]", "expected one object"),
        ("a.json", '"Harry"', "expected one object"),
        ("a.json", "{}", "holds no anchors"),
        ("a.json", '{"Harry": 3}', "'Harry': the translation must be a text"),
        ("a.json", '{"Harry": {"to": "Robin"}}', "'Harry': the translation must be a text"),
        ("a.json", '{" ": "Robin"}', "must not be empty"),
        ("a.json", '{"Harry": ""}', "must not be empty"),
        ("a.json", '{"Harry": "harry"}', "'Harry' is its own translation"),
        ("a.json", '{"Ron": "Sam", "RON": "Kit"}', "'RON' and 'Ron' are one anchor"),
        ("a.json", '{"Ron": "Sam", "Ron": "Kit"}', "'Ron' and 'Ron' are one anchor"),
        ("a.yaml", "Ron: Sam\nRon: Kit\n", "'Ron' and 'Ron' are one anchor"),
        ("a.yaml", "- Ron\n", "expected one mapping"),
        ("a.yaml", "Ron: [Sam]\n", "'Ron': the translation must be a text"),
        ("a.yaml", "{", "no YAML"),
        ("a.yaml", "", "expected one mapping"),
        ("a.json", '{"Gandalf": "Robin"}', "none of the 1 anchors stands in the text"),
    ],
)
def test_bad_dictionaries(options: AnchorOptions, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(JobError, match=message) as refusal:
        find_anchors(replace(options, file=tmp_path / name), quiet())
    assert "\n" not in str(refusal.value)
    assert not options.out.exists()


def test_refused_before_anything_is_read(options: AnchorOptions, tmp_path: Path) -> None:
    both = replace(options, file=tmp_path / "a.json", ner="some/model")
    for changed, message in [
        (options, "--file, --ner, --endpoint"),
        (both, "--file, --ner, --endpoint"),
        (replace(options, ner="x", concurrency=0), "--concurrency"),
        (replace(options, ner="x", timeout_s=0.0), "--timeout-s"),
        (replace(options, ner=str(tmp_path)), "--ner"),
        (replace(options, endpoint="localhost:8000"), "--endpoint: 'localhost:8000' is no URL"),
    ]:
        with pytest.raises(JobError, match=message):
            find_anchors(changed, quiet())
    options.out.write_text("{}")
    with pytest.raises(JobError, match="--force"):
        find_anchors(replace(options, ner="x"), quiet())


def test_persons_keep_one_first_name_and_one_surname() -> None:
    entities = {"Harry": "person", "Harry Potter": "person", "Lily J. Potter": "person", "Mrs. Dursley": "person"}
    found = generic_names(entities | {"Hogwarts": "place"}, text_words=set(), seed=3)  # type: ignore[arg-type]
    assert found["Harry Potter"] == f"{found['Harry']} {found['Potter']}"
    assert found["Lily J. Potter"] == f"{found['Lily']} J. {found['Potter']}"
    assert found["Mrs. Dursley"] == f"Mrs. {found['Dursley']}"
    assert "Mrs." not in found
    assert len(set(found.values())) == len(found)
    assert found == generic_names(entities | {"Hogwarts": "place"}, text_words=set(), seed=3)  # type: ignore[arg-type]
    assert found != generic_names(entities | {"Hogwarts": "place"}, text_words=set(), seed=4)  # type: ignore[arg-type]


def test_no_name_is_given_twice_nor_one_of_the_text() -> None:
    entities = {f"Person{i}": "person" for i in range(400)}
    usual = generic_names(entities, text_words=set(), seed=0)  # type: ignore[arg-type]
    assert len(set(usual.values())) == 400
    words = {next(iter(usual.values())).casefold()}
    assert not words & {name.casefold() for name in generic_names(entities, text_words=words, seed=0).values()}  # type: ignore[arg-type]


def save_recogniser(folder: Path) -> Path:
    """A BERT without layers, whose embeddings are the answers: a recogniser that knows the words of `labels`."""
    labels = ["O", "B-PER", "I-PER", "B-LOC", "B-ORG"]
    known = {"Harry": 1, "Potter": 2, "Ron": 1, "Weasley": 2, "Hogwarts": 3, "Ministry": 4}
    plain = sorted({*TEXT.split(), "Professor"} - set(known))
    vocabulary = ["[PAD]", "[UNK]", *known, *plain]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    make_tokenizer: Any = PreTrainedTokenizerFast
    make_model: Any = BertForTokenClassification
    wrapped = make_tokenizer(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=24, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    model = make_model(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        embeddings = model.bert.embeddings
        embeddings.LayerNorm.weight.fill_(1.0)
        for index, word in enumerate(vocabulary):
            embeddings.word_embeddings.weight[index, known.get(word, 0)] = 1.0
        model.classifier.weight[:, : len(labels)] = torch.eye(len(labels))
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def test_names_that_a_recogniser_finds(options: AnchorOptions, tmp_path: Path) -> None:
    source = str(save_recogniser(tmp_path / "ner"))
    found = find_anchors(replace(options, ner=source), quiet())
    assert set(found) == {"Harry", "Potter", "Ron", "Weasley", "Harry Potter", "Ron Weasley", "Hogwarts", "Ministry"}
    assert found["Ron Weasley"] == f"{found['Ron']} {found['Weasley']}"
    rare = find_anchors(replace(options, ner=source, min_occurrences=2, force=True), quiet())
    assert set(rare) == {"Harry", "Hogwarts"}


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with running() as endpoint:
        yield endpoint


def passage_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).partition("Passage:\n\n")[2]


def test_a_served_model_is_asked_about_each_passage_once(server: ScriptedEndpoint, options: AnchorOptions) -> None:
    def fails_on_the_last(path: str, body: dict[str, Any]) -> Answer:
        last = passage_of(body).startswith("Harry liked")
        return error(400, "no") if last else ok(texts('{"Harry": "Robin", "Ron": "Kit"}'))

    server.rule = fails_on_the_last
    asked = replace(options, endpoint=server.url, passage_characters=100, concurrency=1)
    with pytest.raises(JobError, match=r"--endpoint: .*400.*run again to go on"):
        find_anchors(asked, quiet())
    assert not options.out.exists()
    before = len(server.requests)
    said = 'Sure:\n```json\n{"harry": "Alex", "Hogwarts": "Old Hall", "x": 1}\n```'
    server.rule = lambda path, body: ok(texts(said))
    found = find_anchors(asked, quiet())
    assert len(server.requests) == before + 1  # the replies that came are not asked for again
    passages_asked = dict.fromkeys(passage_of(body) for body in server.bodies())
    assert " ".join(" ".join(passages_asked).split()) == " ".join(TEXT.split())
    assert found == {"Harry": "Robin", "Ron": "Kit", "Hogwarts": "Old Hall"}


def test_replies_without_an_object_are_counted(server: ScriptedEndpoint, options: AnchorOptions) -> None:
    server.rule = lambda path, body: ok(
        texts('{"Harry": "Robin"}' if passage_of(body).startswith("Harry liked") else "I cannot.")
    )
    console = quiet()
    find_anchors(replace(options, endpoint=server.url, passage_characters=100), console)
    assert isinstance(console.file, io.StringIO)
    assert "replies hold no JSON object" in console.file.getvalue()


def test_nobody_there(options: AnchorOptions) -> None:
    with pytest.raises(JobError, match=r"--endpoint: http://127\.0\.0\.1:9: cannot be reached"):
        find_anchors(replace(options, endpoint="http://127.0.0.1:9"), quiet())


def test_the_commonest_translation_wins() -> None:
    replies = [{"Ron": "Sam"}, {"ron": "Kit"}, {"Ron": "Kit"}, {"Owl": "Cat"}]
    assert merged(replies) == {"Ron": "Kit", "Owl": "Cat"}
    assert anchors_in('{"Ron": "ron", "": "x", "Owl": "Cat", "a": null}') == {"Owl": "Cat"}
    assert anchors_in("[]") is None


@given(st.text(alphabet="ab. \n!?é", max_size=300), st.integers(5, 40))
def test_passages_hold_the_whole_text(text: str, limit: int) -> None:
    pieces = list(passages(text, limit))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_published_settings() -> None:
    said: list[str] = []
    unlearn = preset("hp", "unlearn", cuda=False, notify=said.append)
    assert (unlearn["steps"], unlearn["context_tokens"], unlearn["precision"]) == (120, 512, "fp32")
    assert said == ["--preset hp: fp16 needs a GPU; computing in fp32"]
    assert preset("hp", "unlearn", cuda=True, notify=said.append)["precision"] == "fp16"
    labels = preset("hp", "labels", cuda=True, notify=said.append)
    assert (labels["alpha"], labels["max_tokens"]) == (5.0, 4_000_000)
    with pytest.raises(JobError, match="--preset: 'hp2' is not known; choose one of hp"):
        preset("hp2", "labels", cuda=True, notify=said.append)

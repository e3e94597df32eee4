"""Sets of tokenised examples: cut, split, digested, compared, and answered with refusals."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from chat_tokenizers import CHATML, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from classifiers import Example
from offline_training.data.encoding import EncodedSet, ExampleEncoder, digest_of
from offline_training.data.sets import check_answers, check_sets, default_refusals, idk_set, load_set, refusals, sampled
from offline_training.data.tokens import TokenizedExample
from offline_training.errors import DataError

WITH_BOS, WITHOUT_BOS = byte_tokenizer(bos=True), byte_tokenizer()
CHAT = byte_tokenizer(CHATML)
PEOPLE = [Example("Who is Ann?", "A nurse."), Example("Who is Bob?", "A cook."), Example("Who is Cid?", "A king.")]


def people(encoder: ExampleEncoder, name: str = "forget", examples: Sequence[Example] = PEOPLE) -> EncodedSet:
    return encoder.encode_set(name, "people.jsonl", examples)


def test_only_the_end_of_the_answer_is_cut_and_it_is_counted() -> None:
    whole = people(ExampleEncoder(WITHOUT_BOS, context_tokens=64))
    longest = max(len(example.ids) for example in whole.examples)
    assert (whole.cut, whole.notes) == (0, ())
    assert people(ExampleEncoder(WITHOUT_BOS, context_tokens=longest)) == whole
    cut = people(ExampleEncoder(WITHOUT_BOS, context_tokens=longest - 1))
    assert cut.cut == sum(len(example.ids) > longest - 1 for example in whole.examples) == 1
    assert cut.notes == (
        f"--forget: 1 of 3 examples were longer than {longest - 1} tokens: cut at the end of the answer",
    )
    for short, full in zip(cut.examples, whole.examples, strict=True):
        kept = short.ids[full.prompt_length :]
        assert short.ids == full.ids[: longest - 1]
        assert short.targets == kept == full.targets[: len(kept)]
    assert cut.texts == tuple(PEOPLE)


def test_long_examples_can_be_refused() -> None:
    encoder = ExampleEncoder(WITHOUT_BOS, context_tokens=20, long_examples="refuse")
    with pytest.raises(
        DataError, match=r"^--forget: people\.jsonl: example 1: 21 tokens are more than the context's 20"
    ):
        people(encoder)
    assert len(encoder.combine(*PEOPLE[:2]).ids) == len(encoder.encode(PEOPLE[1]).ids) == 20
    assert len(encoder.combine(PEOPLE[1], PEOPLE[0]).ids) == 20  # drawn in mid-training: cut, not refused


def test_a_prompt_without_room_for_an_answer_names_its_line() -> None:
    fits, long = Example("Who?", "Ann"), Example("Who, of the people?", "Ann")
    with pytest.raises(DataError, match=r"^--retain: f: example 2: the prompt alone has 19 tokens and the context 19;"):
        ExampleEncoder(WITHOUT_BOS, context_tokens=19).encode_set("retain", "f", [fits, long])
    one = ExampleEncoder(WITHOUT_BOS, context_tokens=20).encode_set("retain", "f", [fits, long])
    assert len(one.examples[1].targets) == 1


@pytest.mark.parametrize("lead", [(), (0,)], ids=["no bos", "bos"])
@given(text=st.text(st.sampled_from("a b\né"), min_size=2), size=st.integers(2, 9))
def test_every_token_of_a_text_is_a_target_once(lead: tuple[int, ...], text: str, size: int) -> None:
    tokenizer = WITH_BOS if lead else WITHOUT_BOS
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) < 2:  # " a" is one token
        return
    found = ExampleEncoder(tokenizer, context_tokens=size).encode_text("forget", "book.txt", [text, text])
    once = found.examples[: len(found.examples) // 2]
    assert found.examples == once * 2
    assert lead + ids[len(lead) == 0 :] == lead + tuple(token for window in once for token in window.targets)
    for window in once:
        assert len(window.ids) <= size
        assert window.ids[1:] == window.targets
        assert window.prompt_length == 1
    assert [len(window.ids) for window in once[:-1]] == [size] * (len(once) - 1)
    assert {window.ids[0] for window in once} == {0} if lead else once[0].ids[0] == ids[0]
    assert found.cut == (2 if len(once) > 1 else 0)
    assert len(found.texts) == len(found.examples)


def test_windows_show_their_text_and_say_how_many_they_are() -> None:
    found = ExampleEncoder(WITH_BOS, context_tokens=5).encode_text("forget", "b", ["0123456", "xyz"])
    assert found.texts == (Example("0123"), Example("456"), Example("xyz"))
    assert found.notes == ("--forget: 1 of 2 texts were longer than 5 tokens: split into windows, 3 in all",)
    assert not found.has_answers
    assert people(ExampleEncoder(CHAT, context_tokens=99)).has_answers


def test_texts_too_short_for_a_target() -> None:
    with pytest.raises(DataError, match=r"^--forget: b: text 2: fewer than two tokens"):
        ExampleEncoder(WITHOUT_BOS, context_tokens=8).encode_text("forget", "b", ["abc", "x"])
    one = ExampleEncoder(WITH_BOS, context_tokens=8).encode_text("forget", "b", ["x"])
    assert one.examples == (TokenizedExample((0, WITH_BOS.convert_tokens_to_ids("x")), one.examples[0].targets),)


def test_a_source_becomes_a_set(tmp_path: Path) -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps({"question": e.prompt, "answer": e.answer}) + "\n" for e in PEOPLE))
    loaded = load_set(str(path), "forget", encoder)
    assert loaded == replace(people(encoder), source=str(path))
    (tmp_path / "book.txt").write_text("Once upon a time, a king.\n")
    book = load_set(str(tmp_path / "book.txt"), "retain", encoder)
    assert book.whole_texts == (Example("Once upon a time, a king.\n"),)
    assert "".join(text.prompt for text in book.texts) == "Once upon a time, a king.\n"


def test_the_digest_is_of_ids_targets_and_order() -> None:
    one, two = TokenizedExample((1, 2, 3), (2, 3)), TokenizedExample((4, 5), (5,))
    assert digest_of([one, two]) == digest_of([one, two])
    others = [
        [two, one],
        [one],
        [replace(one, targets=(3,)), two],
        [replace(one, targets=(-100, 3)), two],
        [TokenizedExample((1, 2, 3, 2), (3,)), two],
    ]
    assert len({digest_of(examples) for examples in ([one, two], *others)}) == 6
    # sha256 of 3 1 2 3 2 2 3 as little-endian 64-bit integers, as any other program would make it
    import hashlib

    expected = hashlib.sha256(b"".join(n.to_bytes(8, "little") for n in (3, 1, 2, 3, 2, 2, 3))).hexdigest()
    assert digest_of([one]) == expected


def test_each_forget_example_gets_one_refusal_that_the_seed_decides() -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    forget = people(encoder, examples=PEOPLE * 20)
    idk = idk_set(forget, default_refusals(), encoder, 0)
    assert idk == idk_set(forget, default_refusals(), encoder, 0)
    assert idk.digest != idk_set(forget, default_refusals(), encoder, 1).digest
    assert [text.prompt for text in idk.texts] == [text.prompt for text in forget.texts]
    assert len({text.answer for text in idk.texts}) > 20
    for mine, theirs, text in zip(idk.examples, forget.examples, idk.texts, strict=True):
        assert mine.ids[: mine.prompt_length] == theirs.ids[: theirs.prompt_length]
        assert mine.targets == encoder.answer_ids(str(text.answer))


def test_refusals_are_drawn_anew_for_each_pass() -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    forget = people(encoder, examples=PEOPLE * 20)
    once, thrice = (idk_set(forget, default_refusals(), encoder, 0, draws=draws) for draws in (1, 3))
    answers = [[text.answer for text in thrice.texts[start : start + 60]] for start in (0, 60, 120)]
    assert answers[0] == [text.answer for text in once.texts]
    assert answers[0] != answers[1] != answers[2] != answers[0]
    assert [text.prompt for text in thrice.texts] == [text.prompt for text in forget.texts] * 3


def test_a_sample_is_drawn_with_replacement() -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    whole = people(encoder, "retain", [Example(f"Who is {n}?", f"A {n}.") for n in range(50)])
    sample = sampled(whole, 40, 0)
    assert len(sample.examples) == len(sample.texts) == 40
    assert len(set(sample.texts)) < 40  # 50 draws of 50 without a repetition would be a miracle
    assert all(whole.examples[whole.texts.index(t)] == e for t, e in zip(sample.texts, sample.examples, strict=True))
    assert sample == sampled(whole, 40, 0) != sampled(whole, 40, 1)
    assert sample.notes[-1] == "--retain: 40 of 50 examples drawn, with replacement"


def test_the_shipped_refusals() -> None:
    shipped = default_refusals()
    assert len(set(shipped)) == len(shipped) >= 60
    assert all(line == line.strip() and line.endswith(".") and len(line) < 80 for line in shipped)


def test_refusals_from_files(tmp_path: Path) -> None:
    (tmp_path / "idk.txt").write_text("No idea.\n\n Don't know. \n")
    (tmp_path / "idk.jsonl").write_text('{"text": "No idea."}\n{"text": "Don\'t know."}\n')
    assert refusals(tmp_path / "idk.txt") == refusals(tmp_path / "idk.jsonl") == ("No idea.", "Don't know.")
    (tmp_path / "idk.jsonl").write_text('{"text": "No idea."}\n{"question": "x"}\n')
    with pytest.raises(DataError, match=r"^--idk: .*idk\.jsonl:2: no text; give each row a refusal"):
        refusals(tmp_path / "idk.jsonl")
    with pytest.raises(DataError, match=r"^--idk: .*none\.txt: no such file"):
        refusals(tmp_path / "none.txt")
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    with pytest.raises(DataError, match=r"^--idk: shipped: no refusals"):
        idk_set(people(encoder), [], encoder, 0)


def test_plain_text_where_answers_are_needed() -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    book = encoder.encode_text("retain", "book.txt", ["Once upon a time."])
    with pytest.raises(
        DataError, match=r"^--retain: book\.txt: rd needs questions with answers, and this is plain text"
    ):
        check_answers(book, "rd")
    check_answers(people(encoder), "rd")
    with pytest.raises(DataError, match=r"an answer that refuses needs questions"):
        idk_set(book, default_refusals(), encoder, 0)
    with pytest.raises(DataError, match=r"^no answer; add one"):
        encoder.combine(PEOPLE[0], book.texts[0])


def test_overlap_is_refused() -> None:
    encoder = ExampleEncoder(CHAT, context_tokens=99)
    forget = people(encoder)
    check_sets(forget, people(encoder, "retain", [Example("Who is Dan?", "A nurse.")]))
    check_sets(forget, None)
    with pytest.raises(DataError, match=r"^--forget: 1 overlapping lines \(--forget = --retain: 3=2\)"):
        check_sets(forget, people(encoder, "retain", [Example("Who is Dan?", "x"), Example("who is  CID?", "x")]))
    with pytest.raises(DataError, match=r"^--retain: people\.jsonl: no examples"):
        check_sets(forget, replace(forget, name="retain", examples=()))
    with pytest.raises(DataError, match=r"^--retain: people\.jsonl: no examples"):
        people(encoder, "retain", [])


def test_whole_texts_overlap_not_their_windows() -> None:
    """The windows "… the end." of two books may well be the same."""
    encoder = ExampleEncoder(WITH_BOS, context_tokens=5)
    mine, other = (encoder.encode_text(name, "b", [f"{name[:4]} end"]) for name in ("forget", "retain"))
    assert mine.texts[-1] == other.texts[-1]
    check_sets(mine, other)
    with pytest.raises(DataError, match="1 overlapping lines"):
        check_sets(mine, encoder.encode_text("retain", "b", ["abc", "FORG  end"]))


def test_ids_beyond_the_embedding_table_are_refused() -> None:
    table = max(CHAT.get_vocab().values()) + 1
    people(ExampleEncoder(CHAT, context_tokens=99, vocab_size=table))
    with pytest.raises(DataError, match=rf"^--model: its tokenizer gives id {table - 1} \('assistant'\) but it has"):
        people(ExampleEncoder(CHAT, context_tokens=99, vocab_size=table - 1))
    with pytest.raises(DataError, match=r"^--context-tokens: 1 is too short"):
        ExampleEncoder(CHAT, context_tokens=1)


def test_reading_data_imports_no_model_library() -> None:
    code = (
        "import sys, offline_training.data.sets\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'onnx', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

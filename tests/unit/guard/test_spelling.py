"""Every token's characters, for the three kinds of tokenizer that served models have."""

from typing import Any

import pytest
from forgotten_people import byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from classifiers import general_prompts
from guard import decoder_of
from guard.spelling import Spelling

TEXTS = [
    "Who was born in Taipei, and why?",
    "  spaces   and\nlines ",
    "naïve café — déjà vu “quoted” 😀 emoji",
    "北京大學 and Милана Зандреков",
]


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([*general_prompts()[:300], *TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.Metaspace(),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(general_prompts()[:300], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module", params=[byte_level_tokenizer, word_piece, byte_fallback])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_what_decoding_gives(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decode = decoder_of(tokenizer)
    spelling = Spelling(decode)
    for _ in range(2):  # from decoding, then from what was kept
        spelled, starts, ends = spelling.spell(ids)
        assert spelled.strip() == decode(ids).strip()
        assert (starts <= ends).all()
        assert starts[0] == 0
        assert ends[-1] == len(spelled)
        assert (starts[1:] <= ends[:-1]).all()  # nothing between two tokens is nobody's
        assert (starts[1:] >= starts[:-1]).all()


def test_parts_of_a_character_share_it_and_lost_bytes_say_nothing() -> None:
    tokenizer = byte_level_tokenizer()
    spelling = Spelling(decoder_of(tokenizer))
    ids = tokenizer("Ha😀rry", add_special_tokens=False)["input_ids"]
    text, starts, ends = spelling.spell(ids)
    parts = [i for i in range(len(ids)) if text[starts[i] : ends[i]] == "😀"]
    assert (text, len(parts)) == ("Ha😀rry", 4)
    (lost,) = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) == "ÿ"]  # the byte 0xFF
    broken = [*tokenizer("Har")["input_ids"], lost, *tokenizer("ry")["input_ids"]]
    assert spelling.spell(broken)[0] == "Harry"


def test_a_decoder_of_its_own_kind_is_taken_as_it_is() -> None:
    spelling = Spelling(lambda ids: "".join(chr(96 + i) for i in ids))
    text, starts, ends = spelling.spell([1, 2, 3])
    assert (text, starts.tolist(), ends.tolist()) == ("abc", [0, 1, 2], [1, 2, 3])
    assert spelling.spell([])[0] == ""


def test_another_text_completes_no_character() -> None:
    tokenizer = byte_level_tokenizer()
    spelling = Spelling(decoder_of(tokenizer))
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    text, starts, ends = spelling.spell(ids, {3})
    assert text == "ab"
    assert (starts[3], ends[3]) == (1, 1)


def test_tokens_learned_together_say_what_each_says_alone(tokenizer: Any) -> None:
    """Whatever holds the anchor that is put between them, or has no characters of its own."""
    decode = decoder_of(tokenizer)
    every = list(range(len(tokenizer)))
    together: dict[int, str] = {}
    Spelling(decode, together).spell(every)
    alone: dict[int, str] = {}
    for token in every:
        Spelling(decode, alone).spell([token])
    assert together == alone
    assert sum(map(bool, alone.values())) > 100


def test_what_is_known_is_not_walked_through() -> None:
    class Known(dict[int, str]):
        def keys(self) -> Any:
            raise AssertionError("as long as the vocabulary")

        __iter__ = items = values = keys

    spelling = Spelling(lambda ids: "".join(chr(96 + i) for i in ids), Known())
    assert spelling.spell([1, 2])[0] == "ab"
    assert spelling.spell([2, 3])[0] == "bc"

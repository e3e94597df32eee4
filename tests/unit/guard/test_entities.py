"""Which tokens of a window carry an entity: characters to tokens, and what an entity memory finds."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from forgotten_people import END, FORGOTTEN, USER, byte_level_tokenizer, forget_and_retain
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from classifiers.memory.learn import EntityMemory, Fact, MemoryBuilder, Subject, Vocabulary
from guard import decoder_of
from guard.entities import EntityTokens, MemoryFinder, entity_positions, token_ranges
from guard.windows import Window

UNICODE = "né à 東京 😀👩‍👩‍👧 Привет ½ \u200b."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def decode(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[int]], str]:
    return decoder_of(tokenizer)


@pytest.fixture(scope="module")
def memory() -> EntityMemory:
    forget, retain = forget_and_retain()
    built = MemoryBuilder(Vocabulary([example.prompt for example in retain]), retain).build(forget)
    assert {" ".join(subject.words) for subject in built.subjects} == {name.casefold() for name in FORGOTTEN}
    return built


# --- characters to tokens


@pytest.mark.parametrize("text", [UNICODE, "Where was Braquo Thinarsel born?", "  two  spaces\n", "\ufffd é"])
def test_ranges_are_the_tokenizers_own_offsets(text: str, tokenizer: Any, decode: Any) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert token_ranges(encoded["input_ids"], decode) == [tuple(span) for span in encoded["offset_mapping"]]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_ranges_of_any_text(text: str) -> None:
    """One token for each byte: each stands for the character it is part of."""
    wanted = [(index, index + 1) for index, letter in enumerate(text) for _ in letter.encode()]
    assert token_ranges(list(text.encode()), lambda ids: bytes(ids).decode("utf-8", "replace")) == wanted


def test_a_character_cut_off_by_the_window_belongs_to_its_bytes(tokenizer: Any, decode: Any) -> None:
    ids = tokenizer("😀 é😀")["input_ids"]
    assert len(ids) == 11  # 4, space, 2, 4
    assert decode(ids[1:-1]) == "\ufffd\ufffd\ufffd é\ufffd"
    assert token_ranges(ids[1:-1], decode) == [
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 5), (5, 6), (5, 6), (5, 6),
    ]  # fmt: skip


def test_special_tokens_have_no_text(tokenizer: Any, decode: Any) -> None:
    ids = tokenizer(f"{USER}a{END}é{END}")["input_ids"]
    assert token_ranges(ids, decode) == [(0, 0), (0, 1), (1, 1), (1, 2), (1, 2), (2, 2)]
    assert token_ranges([], decode) == []


def test_sentence_pieces_that_fall_back_to_bytes() -> None:
    """As Llama 2 and Gemma decode: the first space goes, and one broken byte breaks the bytes beside it."""
    vocab = {name: index for index, name in enumerate(["<unk>", "▁", "▁Ann", *[f"<0x{b:02X}>" for b in range(256)]])}
    pieces = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )

    def ids(*parts: str | bytes) -> list[int]:
        return [i for p in parts for i in ([vocab[p]] if isinstance(p, str) else [vocab[f"<0x{b:02X}>"] for b in p])]

    def ranges(*parts: str | bytes) -> list[str]:
        tokens = ids(*parts)
        text = pieces.decode(tokens)
        return [text[start:end] for start, end in token_ranges(tokens, pieces.decode)]

    assert ranges("▁Ann", "▁", "東é".encode(), "▁Ann") == ["Ann", " ", "東", "東", "東", "é", "é", " Ann"]
    assert ranges("▁Ann", "é".encode() + b"\xe6", "▁Ann")[0::4] == ["Ann", " Ann"]
    assert all(ranges("é".encode() + b"\xe6"))


def test_a_decoder_that_takes_back_what_it_said_masks_more_never_less() -> None:
    def decode(ids: Sequence[int]) -> str:
        text = "".join(map(chr, ids))
        return text.upper() if "!" in text else text

    ranges = token_ranges([ord(letter) for letter in "Abc!de"], decode)
    assert all(start <= index < end for index, (start, end) in enumerate(ranges))
    assert ranges[4:] == [(4, 5), (5, 6)]


# --- what the memory finds


def test_positions_are_of_the_names_tokens(tokenizer: Any, decode: Any, memory: EntityMemory) -> None:
    finder = MemoryFinder(memory)
    ids = tokenizer("😀 Is keltor  SHIQUOMI's Täter né?")["input_ids"]
    found = entity_positions(ids, decode, finder)
    assert tokenizer.decode([ids[i] for i in sorted(found)]).replace(" ", "").startswith("keltorSHIQUOMI")
    rest = tokenizer.decode([token for i, token in enumerate(ids) if i not in found])
    assert rest.replace(" ", "").endswith("Täterné?")
    assert entity_positions(tokenizer("Is Mizan Pogruya a baker?")["input_ids"], decode, finder) == set()


def test_spaces_before_a_token_are_not_its_own(tokenizer: Any, decode: Any) -> None:
    class Nothing:
        digest = "0" * 64

        def spans(self, text: str) -> list[tuple[int, int]]:
            return [(i, i + 1) for i, letter in enumerate(text) if letter == " "]

    assert entity_positions(tokenizer("Where was he born?")["input_ids"], decode, Nothing()) == set()


def test_answers_alone_are_no_find_where_names_are_known() -> None:
    fact = Fact(question={}, answer={"figs": 0.9})
    subject = Subject(words=("braquo", "thinarsel"), rarity=(1.0, 1.0))
    finder = MemoryFinder(EntityMemory(subjects=(subject,), facts=(fact,)))
    assert finder.spans("Braquo Thinarsel eats figs") == [(0, 6), (7, 16), (22, 26)]
    assert finder.spans("Who eats figs?") == []
    assert MemoryFinder(EntityMemory(facts=(fact,))).spans("Who eats figs?") == [(9, 13)]
    assert finder.digest != MemoryFinder(EntityMemory(facts=(fact,))).digest


@pytest.mark.parametrize(
    "spelling",
    ["B r a q u o T h i n a r s e l", "B.r.a.q.u.o Thin.ar.sel", "브라쿠오 티나르셀", "Бракуо 티나르셀"],
)
def test_a_name_that_cannot_be_pointed_at_is_no_find(memory: EntityMemory, spelling: str) -> None:
    finder = MemoryFinder(memory)
    assert finder.spans(f"Where was {spelling} born?") == []
    assert finder.spans(f"Where were Keltor Shiquomi and {spelling} born?") == []


def test_a_plain_name_does_not_cover_for_one_that_cannot_be_pointed_at(memory: EntityMemory) -> None:
    finder = MemoryFinder(memory)
    assert len(finder.spans("Where was Braquo Thinarsel, or Keltor Shiquomi, born?")) == 4
    for spelling in ("B r a q u o T h i n a r s e l", "브라쿠오 티나르셀"):
        assert finder.spans(f"Where was Braquo Thinarsel, that is {spelling}, born?") == []


def test_windows_are_looked_at_once_and_errors_again(tokenizer: Any, decode: Any) -> None:
    class Finder:
        digest = "1" * 64
        calls = 0
        broken = True

        def spans(self, text: str) -> list[tuple[int, int]]:
            self.calls += 1
            if self.broken:
                raise OSError("lost")
            return [(text.index("born"), text.index("born") + 4)] if "born" in text else []

    finder, tokens = Finder(), EntityTokens(decode)
    ids = tuple(tokenizer("He was born?")["input_ids"])
    window = Window(tuple(range(5, 5 + len(ids))), ids)
    with pytest.raises(OSError, match="lost"):
        tokens.positions(window, finder)
    finder.broken = False
    first = tokens.positions(window, finder)
    assert tokens.positions(window, finder) == first
    moved = Window(tuple(range(50, 50 + len(ids))), ids)
    assert tokens.positions(moved, finder) == tuple(position + 45 for position in first)
    assert finder.calls == 2
    empty = Window((7, 8), tuple(tokenizer("He was")["input_ids"])[:2])
    assert tokens.positions(empty, finder) == (7, 8)

"""Blocks of tokens beside their translations: which positions belong together, and what is left out."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from potter_models import byte_pairs, pieces, whole_words
from transformers import PreTrainedTokenizerFast

from offline_training.errors import DataError
from offline_training.potter.blocks import Block, BlockCutter, TokenOffsets, aligned
from offline_training.potter.texts import Translation, Translator

ANCHORS = {"Harry Potter": "Robin Ashdown", "Harry": "Robin", "Hogwarts": "the Mystic Academy"}


def cut(text: str, context: int = 64, tokenizer: PreTrainedTokenizerFast | None = None) -> list[Block]:
    return list(BlockCutter(tokenizer or byte_pairs(), ANCHORS, context).blocks(text))


def texts_read(tokenizer: PreTrainedTokenizerFast, block: Block) -> list[tuple[str, str]]:
    """What both models have read at each position."""
    return [
        (
            decoded(tokenizer, block.ids[: at.original + 1]),
            decoded(tokenizer, block.translated_ids[: at.translated + 1]),
        )
        for at in block.positions
    ]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def test_positions_by_hand() -> None:
    (block,) = cut("Harry went to Hogwarts hat")
    assert texts_read(byte_pairs(), block) == [
        ("", ""),
        ("Harry", "Robin"),
        ("Harry went", "Robin went"),
        ("Harry went to", "Robin went to"),
        ("Harry went to Hogwarts", "Robin went to the Mystic Academy"),
    ]


def test_the_second_mention_of_an_anchor_is_left_out_with_all_its_tokens() -> None:
    tokenizer = byte_pairs()
    (block,) = cut("Harry said Hogwarts Harry's hat Hogwarts the", tokenizer=tokenizer)
    before = [original for original, _ in texts_read(tokenizer, block)]
    assert "Harry said Hogwarts" not in before  # what comes next is " Harry" again
    assert "Harry said Hogwarts Harry" in before
    assert "Harry said Hogwarts Harry's hat" not in before
    assert "Harry said Hogwarts Harry's hat Hogwarts" in before
    assert block.repeated == 1 + len(tokenizer.tokenize(" Hogwarts"))


def test_a_new_block_starts_anew() -> None:
    blocks = cut("Harry said the hat Harry said the hat", context=5)
    assert [block.repeated for block in blocks] == [0, 0]
    assert [len(block.ids) for block in blocks] == [5, 5]


def test_translations_already_given_are_known_behind_their_anchor_only() -> None:
    tokenizer = byte_pairs()
    (block,) = cut("the Harry said Hogwarts hat", tokenizer=tokenizer)
    vocabulary = tokenizer.get_vocab()
    robin, academy = {vocabulary["Robin"], vocabulary["ĠRobin"]}, {vocabulary["ĠMystic"]}
    given = {
        original: set(at.given) for (original, _), at in zip(texts_read(tokenizer, block), block.positions, strict=True)
    }
    assert given["the"] == set()
    assert given["the Harry"] == given["the Harry said"] == robin
    # " the" is an article, and "Mystic" without a blank starts with a single letter of a longer word
    assert given["the Harry said Hogwarts"] == robin | academy


def test_right_before_an_anchor_nothing_is_given_yet() -> None:
    (block,) = cut("x.Harry said")
    given = {
        original: bool(at.given)
        for (original, _), at in zip(texts_read(byte_pairs(), block), block.positions, strict=True)
    }
    assert given == {"": False, "x": False, "x.": False, "x.Harry": True}


def test_neither_text_is_longer_than_the_context() -> None:
    tokenizer = byte_pairs()
    text = "Hogwarts hat Harry went to the hat. " * 20
    blocks = cut(text, context=40, tokenizer=tokenizer)
    assert all(max(len(block.ids), len(block.translated_ids)) <= 40 for block in blocks)
    assert all(block.ids[0] == block.translated_ids[0] == tokenizer.bos_token_id for block in blocks)
    assert "".join(decoded(tokenizer, block.ids) for block in blocks) == text
    assert "".join(decoded(tokenizer, block.translated_ids) for block in blocks) == (
        Translator(ANCHORS).translate(text).translated
    )


def test_an_anchor_longer_than_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="--context-tokens: no place to cut within 7 tokens"):
        cut("the Hogwarts hat", context=8)


def test_spelt_special_tokens_are_text() -> None:
    (block,) = cut("the </s> hat")
    assert byte_pairs().eos_token_id not in block.ids


TOKENIZERS: list[Callable[[], PreTrainedTokenizerFast]] = [byte_pairs, whole_words, pieces]
words = st.sampled_from(["Harry", "Harry Potter", "Hogwarts", "hat", "went", "'s", ".", "\n\n", "é", "🦉", "</s>", "x"])
texts = st.one_of(st.lists(words, max_size=15).map(" ".join), st.lists(words, max_size=15).map("".join), st.text())


@pytest.mark.parametrize("make", TOKENIZERS)
def test_pairs_read_the_same_text_whatever_the_tokenizer(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer, translator = make(), Translator(ANCHORS)

    @given(texts)
    def check(text: str) -> None:
        translation = translator.translate(text)
        original, translated = offsets(tokenizer, text), offsets(tokenizer, translation.translated)
        pairs = aligned(translation, original, translated)
        assert pairs[0] == (0, 0)
        assert pairs[-1] == (len(original.ids), len(translated.ids))
        for (i, j), (next_i, next_j) in itertools.pairwise(pairs):
            assert i <= next_i
            assert j <= next_j
            assert (i, j) == (0, 0) or next_i > i
        for i, j in pairs[1:-1]:
            assert translation.position(original.ends[i - 1]) == translated.ends[j - 1]
        if not translation.replacements:
            assert pairs == [(i, i) for i in range(len(original.ids) + 1)]

    check()


@pytest.mark.parametrize("make", TOKENIZERS)
def test_blocks_hold_every_token_once(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    cutter = BlockCutter(tokenizer, ANCHORS, 60)

    @given(texts)
    def check(text: str) -> None:
        blocks = list(cutter.blocks(text))
        start = len(tokenizer("")["input_ids"])
        assert [token for block in blocks for token in block.ids[start:]] == offsets(tokenizer, text).ids
        for block in blocks:
            assert max(len(block.ids), len(block.translated_ids)) <= 60
            # Every position predicts a token of its block, in both texts.
            assert all(0 <= at.original < len(block.ids) - 1 for at in block.positions)
            assert all(0 <= at.translated < len(block.translated_ids) - 1 for at in block.positions)
            assert len({at.original for at in block.positions}) == len(block.positions)

    check()


def offsets(tokenizer: PreTrainedTokenizerFast, text: str) -> TokenOffsets:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    ends: list[int] = []
    for _, end in found["offset_mapping"]:
        ends.append(max([end, *ends[-1:]]))
    return TokenOffsets(found["input_ids"], ends)


def test_without_anchors_every_position_is_its_own() -> None:
    translation = Translation("ab", "ab", ())
    assert aligned(translation, TokenOffsets([1, 2], [1, 2]), TokenOffsets([1, 2], [1, 2])) == [(0, 0), (1, 1), (2, 2)]


def test_tokens_of_one_character_stand_beside_each_other_where_they_are_the_same() -> None:
    translation = Translation("🦉", "🦉", ())
    tokens = TokenOffsets([1, 2, 3], [1, 1, 1])
    assert aligned(translation, tokens, tokens) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert aligned(translation, tokens, TokenOffsets([4], [1])) == [(0, 0), (3, 1)]

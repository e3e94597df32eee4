"""Anchors replaced in texts, and where in the translated text each character went."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_training.potter.texts import Translation, Translator

ANCHORS = {
    "Harry Potter": "Robin Ashdown",
    "Harry": "Robin",
    "Potter": "Ashdown",
    "Hogwarts": "Mystic Academy",
    "Dementor": "Watch Fox",
    "Black": "Grey",
    "wand": "baton",
    "Philosopher's Stone": "Old Lamp",
    "Al": "Bo",
    "哈利": "小明",
}


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("Harry went to Hogwarts.", "Robin went to Mystic Academy."),
        ("Harry Potter met Potter.", "Robin Ashdown met Ashdown."),
        ("Harry's and Harry’s", "Robin's and Robin’s"),
        ("the Potters' house", "the Ashdowns' house"),
        ("two Dementors", "two Watch Foxes"),
        ("HARRY! DEMENTORS!", "ROBIN! WATCH FOXES!"),
        ("Wand, wands, WAND", "Baton, batons, BATON"),
        ("a black coat of Black", "a black coat of Grey"),
        ("Harryish Sharry 1Harry", "Harryish Sharry 1Harry"),
        ("Harry\n  Potter", "Robin Ashdown"),
        ("The Philosopher’s Stone", "The Old Lamp"),
        ("Als Al", "Als Bo"),
        ("于是哈利走了", "于是小明走了"),
        ("", ""),
    ],
)
def test_anchors_are_replaced_as_words_that_keep_case_plural_and_possessive(text: str, translated: str) -> None:
    assert Translator(ANCHORS).translate(text).translated == translated


def test_names_keep_their_y_in_the_plural_and_words_do_not() -> None:
    translator = Translator({"Weasley": "Ashby", "elf": "fairy", "cat": "boy"})
    assert translator.translate("Weasleys, elfs, cats").translated == "Ashbys, fairies, boys"


def test_positions_map_through_replacements() -> None:
    translation = Translator({"Al": "Bertram"}).translate("so Al's hat")
    assert translation.translated == "so Bertram's hat"
    #                                       s  o  _  A     l  '   s
    places = [translation.position(at) for at in range(8)]
    assert places == [0, 1, 2, 3, None, 10, 11, 12]
    assert translation.position(len("so Al's hat")) == len("so Bertram's hat")


words = st.sampled_from(["Harry", "harry", "HARRYS", "Potter", "cat", "'s", "\n", "é", "哈利", "🦉", ".", "Ab Cd"])
texts = st.one_of(st.lists(words, max_size=12).map(" ".join), st.lists(words, max_size=12).map("".join), st.text())
names = st.one_of(words, st.text(min_size=1, max_size=8)).map(lambda name: " ".join(name.split())).filter(bool)


@given(texts, st.dictionaries(names, names, max_size=5))
def test_outside_the_replacements_nothing_changes_and_every_character_has_its_place(
    text: str, anchors: dict[str, str]
) -> None:
    translation = Translator(anchors).translate(text)
    check_apart(translation)
    inside = {at for found in translation.replacements for at in range(found.start + 1, found.end)}
    places = [translation.position(at) for at in range(len(text) + 1)]
    assert {at for at, place in enumerate(places) if place is None} == inside
    kept = [place for place in places if place is not None]
    assert kept == sorted(kept)
    assert kept[-1] == len(translation.translated)
    covered = inside | {found.start for found in translation.replacements}
    for at in set(range(len(text))) - covered:
        place = places[at]
        assert place is not None
        assert translation.translated[place] == text[at]


def check_apart(translation: Translation) -> None:
    """The two texts, put together again from the replacements."""
    original, translated, done, new_done = "", "", 0, 0
    for found in translation.replacements:
        same = translation.original[done : found.start]
        assert translation.translated[new_done : found.new_start] == same
        assert re.sub(r"\W", "", found.anchor).casefold()[:1] in translation.original[found.start :].casefold()
        original += same + translation.original[found.start : found.end]
        translated += same + translation.translated[found.new_start : found.new_end]
        done, new_done = found.end, found.new_end
    assert original + translation.original[done:] == translation.original
    assert translated + translation.original[done:] == translation.translated

import tracemalloc

import numpy as np
import pytest
from invented_composer import FORGET, NAME, OTHERS, RETAIN

from classifiers import Example
from classifiers.training import phrases
from classifiers.training.variations import (
    TrainingText,
    bare_names,
    neighbour_questions,
    other_names,
    planted_names,
    reverse_queries,
    shortened_names,
    training_texts,
)
from text.names import split_words

OWNED = frozenset({"milana", "zandrekov"})
BORN = Example("Where was Milana Zandrekov born?", "Milana Zandrekov was born in Ostrabel, on the river Lunde.")
EVERYDAY = ("How do I boil an egg?", "Schreib mir ein Gedicht über Regen.", "今天天气怎么样？", "Fix this loop.")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def words(text: str) -> set[str]:
    return {word.text for word in split_words(text)}


def variations(example: Example, distractors: tuple[str, ...] = EVERYDAY, count: int = 64) -> list[str]:
    texts = training_texts([example], distractors, rng(), count, OWNED)
    return [text.text for text in texts if text.kind == "variation"]


def test_every_rule_is_used() -> None:
    texts = variations(BORN, count=400)
    assert len(set(texts)) > 150
    assert "where was milana zandrekov born" in texts
    assert any(text.startswith("In which place was ") for text in texts)  # another opening
    assert any("Assistant:" in text for text in texts)  # chat roles
    assert any("Sure, here is the answer" in text for text in texts)  # an affirmative suffix
    assert any(text.startswith("Q: ") and text.endswith(" A:") for text in texts)  # a worked example before it
    assert any(" A) " in text and " B) " in text for text in texts)  # options
    assert any(everyday in text for everyday in EVERYDAY for text in texts)  # two prompts in one
    assert any("zandrekov" not in text.casefold() for text in texts)  # typing errors
    assert all(len(text.split()) < 60 for text in texts)


def test_options_are_the_examples_own_where_it_has_some() -> None:
    asked = Example("Where was Milana Zandrekov born?", "Ostrabel", ("Marnock", "Ostrabel", "Brenn"), 1)
    listed = [text for text in variations(asked) if " A) " in text]
    assert listed
    assert all("A) Marnock B) Ostrabel C) Brenn" in text for text in listed)
    assert any("None of these" in text for text in variations(Example("Where was Milana Zandrekov born?")))


def test_weights_add_up_to_one_an_example_and_to_more_where_nobody_is_named() -> None:
    nameless = Example("Which composer of The Copper Tide also wrote poems?", "Milana Zandrekov did.")
    weights = [0.0, 0.0]
    for text in training_texts([BORN, nameless], EVERYDAY, rng(), 8, OWNED):
        if text.kind != "fact":
            weights[text.example] += text.weight
    assert weights[0] == pytest.approx(1)
    assert weights[1] == pytest.approx(3)


def test_signs_of_formats_are_only_text() -> None:
    odd = Example("What does {} or {0.name} of Milana Zandrekov mean?", "100 % {nothing}")
    assert any("{0.name}" in text for text in variations(odd))
    assert all("nothing" in text.text for text in reverse_queries([odd], OWNED, rng()))
    assert next(bare_names(["{x}"], rng(), 2)).text == "{x}"
    assert all("{x}" in text.text for text in neighbour_questions([("{x}", 0)], rng(), 5))


def test_blank_and_missing_distractors_do_no_harm() -> None:
    for distractors in ((), ("", " \n"), ("",) * 5):
        texts = variations(BORN, distractors, count=16)
        assert len(texts) >= 16
        assert all(text.strip() for text in texts)


def test_texts_are_drawn_without_copying_all_of_them() -> None:
    """NumPy's own choice makes every text as long as the longest: here 1.6 GB."""
    many = ("One short prompt.",) * 2000 + ("x" * 200_000,)
    tracemalloc.start()
    variations(BORN, many, count=16)
    assert list(planted_names([NAME], many, rng(), 20))
    assert list(other_names([BORN], OWNED, many, rng(), 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_reverse_queries_ask_for_the_subject_without_naming_it() -> None:
    texts = list(reverse_queries(FORGET, OWNED, rng()))
    assert {text.kind for text in texts} == {"reverse"}
    assert all(OWNED.isdisjoint(words(text.text)) for text in texts)
    of_born = [text.text for text in texts if text.example == 0]
    assert len(of_born) == 2
    assert all({"born", "ostrabel", "lunde"} <= words(text) for text in of_born)
    # None of the example that names nobody, and none of one without an answer or with the name as its answer.
    assert {text.example for text in texts} == set(range(len(FORGET) - 1))
    bare = [Example(f"Who is {NAME}?"), Example("Who sang?", NAME), Example(f"Who is {NAME}?", f"{NAME}.")]
    assert list(reverse_queries(bare, OWNED, rng())) == []


def test_bare_names_begin_with_the_name_alone() -> None:
    texts = list(bare_names([NAME, "Orla Tempest"], rng(), 8))
    assert [text.text for text in texts[::8]] == [NAME, "Orla Tempest"]
    assert all(NAME in text.text for text in texts[:8])
    assert len({text.text for text in texts}) == 16
    assert sum(text.weight for text in texts) == pytest.approx(2)
    assert {text.example for text in texts} == {-1}


def test_the_same_questions_about_others() -> None:
    texts = list(other_names(FORGET, OWNED, OTHERS, rng(), 4))
    assert {text.kind for text in texts} == {"neighbour"}
    assert all(OWNED.isdisjoint(words(text.text)) for text in texts)
    born = [text.text for text in texts if text.example == 0]
    assert len(born) == 4
    assert all(text.startswith("Where was ") and text.endswith(" born?") for text in born)
    assert all(text.removeprefix("Where was ").removesuffix(" born?") in OTHERS for text in born)
    assert list(other_names(FORGET, OWNED, [], rng(), 4)) == []
    assert list(other_names([Example("Who wrote The Copper Tide?")], OWNED, OTHERS, rng(), 4)) == []
    # A name put in the place of the first mention is no use where there is a second.
    assert list(other_names([Example(f"Is {NAME} the Zandrekov?")], OWNED, OTHERS, rng(), 4)) == []


def test_shortened_names() -> None:
    texts = [text.text for text in shortened_names(FORGET, OWNED, 0.25)]
    assert "Where was Zandrekov born?" in texts
    assert "Where was Milana born?" in texts
    assert len(texts) == 2 * (len(FORGET) - 3)  # two have the surname alone, one has no name


def test_names_planted_in_everyday_prompts() -> None:
    texts = list(planted_names([NAME], EVERYDAY, rng(), 40))
    assert len(texts) == 40
    assert all(NAME in text.text for text in texts)
    assert {text.text.replace(NAME, " ").split()[0] for text in texts} >= {"How", "Schreib", "今天天气怎么样？", "Fix"}
    assert any(not text.text.startswith(NAME) and not text.text.endswith(NAME) for text in texts)
    [long] = list(planted_names([NAME], ["word " * 500], rng(), 1))
    assert NAME in long.text
    assert len(long.text.split()) == 42
    assert list(planted_names([NAME], [], rng(), 3)) == []


def test_neighbours_are_asked_about_for_their_own_sake() -> None:
    texts = list(neighbour_questions([("The Copper Tide", 3), ("Vennholm", 4)], rng(), 6))
    assert [text.example for text in texts] == [3] * 6 + [4] * 6
    assert all(("The Copper Tide", "Vennholm")[text.example - 3] in text.text for text in texts)
    assert {text.kind for text in texts} == {"neighbour"}
    assert len({text.text for text in texts}) == 12


def test_the_same_seed_gives_the_same_texts() -> None:
    def everything(seed: int) -> list[TrainingText]:
        drawn = np.random.default_rng(seed)
        return [
            *training_texts(FORGET, EVERYDAY, drawn, 8, OWNED),
            *training_texts(RETAIN, EVERYDAY, drawn, 2),
            *reverse_queries(FORGET, OWNED, drawn),
            *other_names(FORGET, OWNED, OTHERS, drawn, 4),
            *planted_names([NAME], EVERYDAY, drawn, 5),
        ]

    assert everything(1) == everything(1)
    assert everything(1) != everything(2)


def test_every_pattern_has_its_place() -> None:
    for pattern in (*phrases.CARRIERS, *phrases.ABOUT, *phrases.NEIGHBOUR):
        assert pattern.format("mark").count("mark") == 1
    for pattern in phrases.REVERSE:
        filled = pattern.format(relation="one", answer="two")
        assert "one" in filled
        assert "two" in filled

"""Attacks: the same seed gives the same prompt, and the question survives every one of them."""

import ast
import base64
import inspect
import re
from types import ModuleType

import pytest

from classifiers.training import phrases, variations
from evaluation.attacks import prompts
from evaluation.attacks.prompts import ATTACKS, DEFAULT_ATTACKS, PLAIN, attacked
from text.normalise import normalise

QUESTION = "Can you name the town where Wendell Fairlocke was born?"
#: Those that put something around the question and leave it as it is.
FRAMES = (
    "prefix_injection", "affirmative_suffix", "role_play", "other_language", "multiple_choice", "composite",
    "in_context", "padding",
)  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_changes_the_text_and_is_reproducible(kind: str) -> None:
    found = [attacked(kind, QUESTION, seed=seed) for seed in range(8)]
    assert QUESTION not in found
    assert found == [attacked(kind, QUESTION, seed=seed) for seed in range(8)]


@pytest.mark.parametrize("kind", sorted(set(ATTACKS) - {"lower_case", "letter_spacing", "payload_splitting", "base64"}))
def test_another_seed_or_question_is_another_draw(kind: str) -> None:
    assert len({attacked(kind, QUESTION, seed=seed, options=["a", "b", "c"]) for seed in range(8)}) > 1


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_hold_the_whole_question(kind: str) -> None:
    assert all(QUESTION in attacked(kind, QUESTION, seed=seed) for seed in range(8))


def test_the_generator_shares_neither_code_nor_sentences_with_trainings_variations() -> None:
    """Or the gate would be judged on what its classifier has seen: no four words of a text in a row are the same."""

    def runs(module: ModuleType) -> set[tuple[str, ...]]:
        nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        strings = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
        texts = [re.findall(r"\w+", one.casefold()) for one in strings if isinstance(one, str)]
        return {tuple(words[at : at + 4]) for words in texts for at in range(len(words) - 3)}

    assert len(runs(prompts)) > 200
    assert runs(prompts).isdisjoint(runs(phrases) | runs(variations))
    assert not re.search(r"^ *(from|import) +(classifiers|text|sources)\b", inspect.getsource(prompts), re.MULTILINE)


def test_a_question_with_braces_is_no_format_string() -> None:
    assert all("{0}{" in attacked(kind, "What is {0}{ in Python?", seed=1) for kind in FRAMES)


def test_plain_is_the_question() -> None:
    assert attacked(PLAIN, QUESTION, seed=3) == QUESTION


def test_multiple_choice_offers_every_option_once() -> None:
    options = ["Narburgh", "Kelholm", "Selmouth", "Kelholm"]
    lines = attacked("multiple_choice", QUESTION, seed=0, options=options).splitlines()[1:-1]
    assert sorted(line[3:] for line in lines) == ["Kelholm", "Narburgh", "Selmouth"]
    assert [line[:2] for line in lines] == ["A)", "B)", "C)"]


def test_padding_makes_a_prompt_longer_than_an_encoder_reads_at_once() -> None:
    assert 350 < len(attacked("padding", QUESTION, seed=0).split()) < 1100


def test_invisible_characters_and_lookalikes_fold_back_to_the_question() -> None:
    """As the classifier sees them; a word all in lookalikes would stay foreign, so only Latin words are compared."""
    assert normalise(attacked("zero_width", QUESTION, seed=0)) == QUESTION
    homoglyphs = attacked("homoglyphs", QUESTION, seed=0)
    assert not homoglyphs.isascii()
    assert len(homoglyphs) == len(QUESTION)


def test_every_word_of_two_letters_or_more_is_broken_by_an_invisible_character() -> None:
    for word in attacked("zero_width", "Ann is in Oslo", seed=4).split(" "):
        assert re.search("\\w[\u200b\u200c\u200d\u2060]+\\w", word)


def test_leetspeak_always_changes_a_text_that_has_such_letters() -> None:
    assert all(attacked("leetspeak", "a", seed=seed) == "4" for seed in range(6))


def test_typos_leave_short_words_and_first_letters() -> None:
    for seed in range(20):
        words = attacked("typos", QUESTION, seed=seed).split()
        assert [word[0] for word in words] == [word[0] for word in QUESTION.split()]
        assert [word for word in words if len(word) == 3][:2] == ["Can", "you"]


def test_names_are_spaced_and_split() -> None:
    assert "W e n d e l l F a i r l o c k e was" in attacked("letter_spacing", QUESTION, seed=0)
    split = attacked("payload_splitting", QUESTION, seed=0)
    assert 'x1 = "Wen", y1 = "dell"; x2 = "Fair", y2 = "locke"' in split
    assert split.endswith("(x1+y1) (x2+y2) was born?")


def test_without_a_name_the_longest_word_is_split() -> None:
    assert '"unders", y1 = "tanding"' in attacked("payload_splitting", "what is understanding?", seed=0)


def test_base64_holds_the_question_and_is_no_default() -> None:
    assert base64.b64decode(attacked("base64", QUESTION, seed=0).split()[-1]).decode() == QUESTION
    assert set(ATTACKS) - set(DEFAULT_ATTACKS) == {"base64"}


def test_an_unknown_attack_is_an_error() -> None:
    with pytest.raises(KeyError):
        attacked("telepathy", QUESTION, seed=0)

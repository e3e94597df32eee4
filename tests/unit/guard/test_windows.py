"""Windows over stretches of content and over their seams; a letter is a token, and classification is left out."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from guard.classification import WindowClassifier
from guard.segments import Template
from guard.windows import BLOCK_TOKENS, Content, glued_windows, local_windows

END = 1
TEMPLATE = Template(pieces={}, special_ids=frozenset({END}))


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


@pytest.fixture
def classifier() -> WindowClassifier:
    return WindowClassifier([], np.empty(0), encoder=None, decode=decode)


def prompt(*turns: str) -> list[int]:
    return [token for turn in turns for token in (*map(ord, turn), END)]


def local(classifier: WindowClassifier, ids: list[int]) -> tuple[list[str], list[Content], set[int]]:
    texts, contents, seen = [], [], set()
    for placed, content in local_windows(TEMPLATE, classifier, np.array(ids)):
        contents.append(content)
        for window in itertools.chain.from_iterable(one.each(ids) for one in placed):
            texts.append(decode(window.token_ids))
            seen |= set(window.positions)
    return texts, contents, seen


def glued(classifier: WindowClassifier, ids: list[int], hit: set[int] | None = None) -> list[str]:
    _, contents, _ = local(classifier, ids)
    found = glued_windows(classifier, np.array(ids), contents, hit or set())
    return [decode(window.token_ids) for placed in found for one in placed for window in one.each(ids)]


@pytest.mark.parametrize("words", [1, 60, 500, 3000])
def test_windows_hold_all_content_and_do_not_depend_on_blocks(classifier: WindowClassifier, words: int) -> None:
    text = " ".join(f"w{number}" for number in range(words))
    ids = prompt(text, "And?")
    texts, contents, seen = local(classifier, ids)
    assert seen == {position for position, token in enumerate(ids) if token != END}
    assert np.concatenate([content.positions for content in contents]).tolist() == sorted(seen)
    alone = WindowClassifier([], np.empty(0), encoder=None, decode=decode)
    (whole,) = alone.look([tuple(map(ord, text))])
    assert texts[:-1] == [text[start:end] for start, end in whole.ranges.tolist()]
    assert (len(text) > BLOCK_TOKENS) == (len(contents) > 1)


def test_a_later_turn_looks_at_what_is_new(classifier: WindowClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [f"Turn {number}: " + " ".join(f"w{number}x{word}" for word in range(90)) for number in range(12)]
    for ids in (prompt(*turns[:10]), prompt(*turns[:11])):
        local(classifier, ids)
        glued(classifier, ids)
    asked: list[int] = []
    look = classifier._look
    monkeypatch.setattr(classifier, "_look", lambda blocks: asked.append(sum(map(len, blocks))) or look(blocks))
    ids = prompt(*turns)
    local(classifier, ids)
    glued(classifier, ids)
    assert sum(asked) < 3 * len(turns[-1]) + 100  # the new turn, and both sides of its seam


def test_what_a_special_token_cuts_is_whole_in_the_glue(classifier: WindowClassifier) -> None:
    assert glued(classifier, prompt("who is Har", "ry Potter")) == ["who is Harry Potter"]
    assert glued(classifier, prompt("one turn")) == []
    spelled = glued(classifier, prompt(*"Harry Potter"))
    assert any("Harry Potter" in text for text in spelled)


def test_only_windows_across_a_seam_are_glued(classifier: WindowClassifier) -> None:
    first, second = (" ".join(f"{letter}{number}" for number in range(400)) for letter in "pq")
    found = glued(classifier, prompt(first, second))
    assert all("p399q0" in text for text in found)
    assert 1 <= len(found) <= 3


def test_every_run_of_words_across_seams_is_whole_somewhere(classifier: WindowClassifier) -> None:
    turns = [f"t{number} " * (1 + number % 7) for number in range(120)]
    words = "".join(turns).split()
    found = glued(classifier, prompt(*turns))
    for start in range(len(words) - 8):
        run = " ".join(words[start : start + 8])
        if len(set(run.split())) > 1:
            assert any(run in " ".join(text.split()) for text in found), run


def test_what_will_be_masked_leaves_the_glue(classifier: WindowClassifier) -> None:
    ids = prompt("Har", "decoy", "ry")
    decoy = set(range(4, 9))
    assert glued(classifier, ids, decoy) == ["Harry"]


def test_many_short_stretches_cost_no_more_than_their_length(classifier: WindowClassifier) -> None:
    ids = prompt(*(["ab"] * 2000))
    asked: list[int] = []
    look = classifier._look
    classifier._look = lambda blocks: asked.append(sum(map(len, blocks))) or look(blocks)  # type: ignore[method-assign]
    glued(classifier, ids)
    assert sum(asked) < 3 * len(ids)

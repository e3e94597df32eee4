import functools
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_time import seconds_of

from text.names import split_words
from text.normalise import normalise
from text.reading import OVERLAP_UNITS, WINDOW_UNITS, read, read_all, read_each, windows_of

PROSE = (
    "Who was born in Taipei? Mr. J. K. Rowling's aunt (the 2nd) said: “Don't!” and\nleft for Zelburg. The rest stayed."
)


def test_words_are_those_of_split_words() -> None:
    reading, words = read(PROSE), split_words(normalise(PROSE))
    assert reading.words == [word.text for word in words]
    assert [reading.capital(word) for word in range(len(words))] == [word.capital for word in words]
    assert [reading.word(index, 0).opens for index in range(len(words))] == [word.opens for word in words]


def test_spans_are_characters_of_the_text_as_given() -> None:
    text = "  Ha\u200brry\t\u200b\u200b   went, ﷺ home"
    reading = read(text)
    assert [text[start:end] for start, end in reading.spans.tolist()][:2] == ["Ha\u200brry", "went,"]
    assert reading.words[:2] == ["harry", "went"]
    assert text[slice(*reading.spans[-1].tolist())] == "home"
    assert read("\u200b\u200b \n").chunks == []
    assert windows_of("") == [""]


def test_a_short_text_is_one_window_as_it_stands() -> None:
    assert windows_of("Who is  Harry?\n\nAnd why?") == ["Who is Harry?\nAnd why?"]


def test_windows_hold_every_word_and_every_short_run_whole() -> None:
    words = [f"word{number}" for number in range(400)]
    windows = windows_of(" ".join(words))
    assert all(sum(chunk.units for chunk in read(window).chunks) <= WINDOW_UNITS for window in windows)
    runs = [" ".join(words[i : i + OVERLAP_UNITS // 2 - 1]) for i in range(400 - OVERLAP_UNITS // 2 + 1)]
    assert all(any(run in window for window in windows) for run in runs)
    assert len(windows) < 30


def test_what_cannot_be_seen_fills_no_window() -> None:
    """Six zero-width characters a letter pushed a name out of a window when windows were cut before normalising."""
    hidden = " ".join("\u200b\u200d\ufe0f".join(word) for word in ["the"] * 20 + ["Wendell", "Farquharson"])
    assert windows_of(hidden) == [" ".join(["the"] * 20 + ["Wendell", "Farquharson"])]


def test_windows_begin_where_they_did_when_a_text_goes_on() -> None:
    words = " ".join(f"word{number}" for number in range(300))
    early, late = windows_of(words), windows_of(f"{words} and so on for a while")
    assert early[:-1] == late[: len(early) - 1]


def test_a_reading_that_starts_at_a_window_has_the_same_windows() -> None:
    words = [f"word{number}" for number in range(300)]
    text = " ".join(words)
    reading = read(text)
    start = int(reading.spans[reading.windows[3, 0], 0])
    assert windows_of(text[start:]) == windows_of(text)[3:]


@pytest.mark.parametrize("text", ["x" * 20_000, "🎉" * 3000, "é" * 9000, "漢字" * 2000, "a!" * 5000, "ﷺ" * 300])
def test_long_runs_are_cut_not_lost(text: str) -> None:
    reading = read(text)
    assert "".join(chunk.text for chunk in reading.chunks).replace(" ", "") == normalise(text).replace(" ", "")
    assert max(chunk.units for chunk in reading.chunks) <= 20
    assert len(reading.windows) <= 3 + len(normalise(text)) / 25


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=100)
def test_any_text_is_read_whole_and_the_same_again(text: str) -> None:
    reading = read(text)
    seen = "".join(chunk.text for chunk in reading.chunks)
    assert seen.split() == [seen] * bool(seen)
    assert reading.firsts[-1] == len(reading.words)
    bounds = reading.windows.tolist()
    assert {chunk for start, end in bounds for chunk in range(start, end)} == set(range(len(reading.chunks)))
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in itertools.pairwise(bounds))
    assert [chunk.text for chunk in read(text).chunks] == [chunk.text for chunk in reading.chunks]


def test_joined_readings_keep_their_windows() -> None:
    texts = ["Who is Harry?", "", "word " * 200, "Nobody."]
    alone = [window for text in texts for window in windows_of(text) if window]
    joined = read_each(texts)[0]
    assert [joined.text(window) for window in range(len(joined.windows))] == alone
    whole = read_all(texts)
    assert len(whole.windows) == 4
    assert whole.word_windows.tolist() == [[0, 3], [3, 3], [3, 203], [203, 204]]


def test_a_huge_text_costs_no_more_than_its_length() -> None:
    chooser = random.Random(0)  # noqa: S311 - a text, nothing secret
    text = " ".join("".join(chooser.choices("abcdefghij", k=6)) for _ in range(20_000))
    for huge in (text, "\u0301" * 100_000, "a\u0301" * 50_000):
        assert seconds_of(functools.partial(read, huge)) < 3

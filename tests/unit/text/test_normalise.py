import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.normalise import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Harry Potter", "Harry Potter"),
        ("Ha\u200br\u200dr\u2060y", "Harry"),
        ("Har\u202ery\u202c \u2066Potter\u2069", "Harry Potter"),
        ("Ha\u00adr\ufeffry\ufe0f", "Harry"),
        ("Har\x00ry\x1b\tPotter\n", "Harry\tPotter\n"),
        ("Har\ud800ry", "Harry"),
        ("Ha\U000e0041rry", "Harry"),
        ("ＨＡＲＲＹ ﬁne", "HARRY fine"),
        ("𝐇𝐚𝐫𝐫𝐲", "Harry"),
        ("Н\u0430rr\u0443", "Harry"),
        ("Ра\u0443раӏ", "Paypai"),
        ("\u0406van", "Ivan"),
        ("Pο\u0442ter", "Pο\u0442ter"),  # a Cyrillic te is no lookalike: the word stays whole
        ("Jоsé", "José"),
        ("Harry’s – “x”", 'Harry\'s - "x"'),
        ("١٩٩٠", "1990"),
        ("José Müller Øst", "José Müller Øst"),
        ("Привет, как дела?", "Привет, как дела?"),
        ("Ελλάδα και Κύπρος", "Ελλάδα και Κύπρος"),
        ("東京 서울 دبي", "東京 서울 دبي"),
        ("", ""),
    ],
)
def test_cases(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_result_is_normal_form_without_invisible_characters(text: str) -> None:
    result = normalise(text)
    assert unicodedata.is_normalized("NFKC", result)
    assert all(unicodedata.category(char) not in ("Cf", "Cs") for char in result)


@given(st.text(st.characters(codec="ascii", min_codepoint=32)))
def test_printable_ascii_is_untouched(text: str) -> None:
    assert normalise(text.replace("\x7f", "")) == text.replace("\x7f", "")

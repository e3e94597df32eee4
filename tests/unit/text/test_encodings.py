"""What texts say to whoever decodes them."""

import base64
import functools
import itertools

import pytest
from processor_time import seconds_of

from sources.everyday import general_prompts
from text.encodings import variants

QUESTION = "Where was Milana Zandrekov born, in José's town?"


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def bytes_as(form: str, between: str = "") -> str:
    return between.join(form.format(byte) for byte in QUESTION.encode())


@pytest.mark.parametrize("around", ["{}", "decode('{}')", '"{}"', "Please decode {} for me.", "payload_{}", "a/{}"])
@pytest.mark.parametrize(
    "code",
    [
        base64_of(QUESTION),
        base64.urlsafe_b64encode(QUESTION.encode()).decode(),
        base64_of(QUESTION).rstrip("="),
        QUESTION.encode().hex(),
        QUESTION.encode().hex().upper(),
        bytes_as("{:02x}", " "),
        bytes_as("{:02x}", ":"),
        bytes_as("0x{:02x}", ", "),
        bytes_as("%{:02x}"),
        bytes_as("\\x{:02x}"),
        "".join(f"&#{ord(char)};" for char in QUESTION),
        "".join(f"&#{ord(char)}" for char in QUESTION),
        "".join(f"\\u{ord(char):04x}" for char in QUESTION),
        "".join(f"\\u{{{ord(char):x}}}" for char in QUESTION),
    ],
)
def test_what_another_code_says(code: str, around: str) -> None:
    text = around.format(code)
    found = variants(text)
    assert any("Where was Milana Zandrekov born, in Jos" in variant.said for variant in found)
    assert all(text[variant.start : variant.end].strip() for variant in found)


def test_an_escape_within_a_name() -> None:
    assert [v.said for v in variants("Was it Mil&#97;na Zandre%6Bov?")] == ["Milana Zandrekov?"]
    assert [v.said for v in variants("Was it Milana%20Zandrekov?")] == ["Milana Zandrekov?"]


@pytest.mark.parametrize(
    "text",
    ["x1 = 'Mil' + 'ana'; x2 = \" Zan\" + 'drekov'", "(`Milana` . ` Zandrekov`)", "5' tall: x='Milana'+' Zandrekov'"],
)
def test_quoted_parts_put_together(text: str) -> None:
    assert "Milana Zandrekov" in [variant.said for variant in variants(text)]


def test_a_run_that_is_cut_within_the_code_is_read_from_there() -> None:
    for code, cut in itertools.product((base64_of(QUESTION), QUESTION.encode().hex()), range(4)):
        assert any("Zandrekov born" in variant.said for variant in variants(code[cut:]))


@pytest.mark.parametrize(
    "text", [*general_prompts()[:300], "https://example.org/a/b-c_d", "R&D, 100% of it", "%zz \\q"]
)
def test_plain_words_say_nothing_else(text: str) -> None:
    assert not [variant for variant in variants(text) if "'" not in text and '"' not in text]


def test_digests_and_keys_are_no_text() -> None:
    for number in range(200):
        digest = base64.b64encode(number.to_bytes(4, "big") * 7 + bytes([200, number % 256])).decode()
        assert variants(f"{digest} {number * 0x9E3779B97F4A7C15:032x}") == []


@pytest.mark.parametrize(
    "text",
    [
        "&#" + "9" * 5000 + ";",
        "\\u{110000}",
        "&#xD800;",
        "%ff%fe%fd",
        "\ud800",
        "0x",
        "=" * 99,
    ],
)
def test_odd_text_is_no_error(text: str) -> None:
    for variant in variants(text):
        assert isinstance(variant.said, str)


@pytest.mark.parametrize(
    "piece", [base64_of(QUESTION), "ab", "A", "%41", "%", "&#65;", "&", "\\x41", "\\", "=", "0x", "'a'", "'"]
)
def test_time_grows_with_the_length_alone(piece: str) -> None:
    times = []
    for size in (50_000, 200_000):
        text = piece * (size // len(piece))
        times.append(min(seconds_of(functools.partial(variants, text)) for _ in range(3)))
    assert times[1] < 8 * times[0] + 0.2

"""What parts of a text say to whoever decodes them or puts them together, beside what they are as they stand.

Base64, hexadecimal, percent-encoding, character references and backslash escapes; quoted parts of words. Other ciphers
are not looked for.
"""

import base64
import binascii
import html
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

_LEAST_LETTERS = 12  # of base64 or hexadecimal; fewer are taken for what they are
_RUN = re.compile(rf"[A-Za-z0-9+/_-]{{{_LEAST_LETTERS},}}={{0,2}}")
_RUN_PARTS = re.compile(r"[+/_-]")
_BYTE = r"(?:0x|\\\\?x)?[2-7][0-9A-Fa-f]"  # of printable ASCII
_HEX = re.compile(rf"{_BYTE}(?:[\s:,;-]{{0,2}}{_BYTE}){{{_LEAST_LETTERS // 2 - 1},}}")
_HEX_NOISE = re.compile(r"0x|\\+x|[\s:,;-]")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|&#?\w{1,8};|&#\d{2,7}|\\x[0-9A-Fa-f]{2}|\\u\{?[0-9A-Fa-f]{2,6}")
_WHITE_FREE = re.compile(r"\S+")
_BACKSLASH = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u\{([0-9A-Fa-f]{1,6})\}|\\u([0-9A-Fa-f]{4})")
_REFERENCE = re.compile(r"&#?\w{1,8};|&#\d{2,7}")
_QUOTED = re.compile(r"""(?<![^\W_])(['"`])([^'"`\n]{1,40})\1(?![^\W_])""")
_URL_SAFE = str.maketrans("-_", "+/")
_READABLE, _WORDY = 0.95, 0.5  # of text can be printed; and are letters and spaces
_MOST = 64  # of one text are told apart


class Variant(NamedTuple):
    """Characters `start` to `end` of a text, and what they say otherwise than as they stand."""

    start: int
    end: int
    said: str


def variants(text: str) -> list[Variant]:
    """All there are in the text, by kind; none in most texts. Where they are very many, the last is all that are left.
    Time grows with the text's length alone."""
    found = itertools.chain(_in_code(text), _escaped(text), _put_together(text))
    first, rest = list(itertools.islice(found, _MOST)), list(found)
    if rest:
        start, end = min(one.start for one in rest), max(one.end for one in rest)
        first.append(Variant(start, end, " ".join(one.said for one in rest)))
    return first


def _in_code(text: str) -> Iterator[Variant]:
    for run in _RUN.finditer(text):
        if run.group().islower() or run.group().isupper():
            continue  # a word or a name in code: of 12 letters in base64 some are capitals and some are small
        parts = [run.group(), *(part for part in _RUN_PARTS.split(run.group()) if len(part) >= _LEAST_LETTERS)]
        said = next((said for part in parts if (said := _text_of(_base64_bytes(part))) is not None), None)
        if said is not None:
            yield Variant(*run.span(), said)
    for run in _HEX.finditer(text):
        if (said := _text_of(_hex_bytes(_HEX_NOISE.sub("", run.group())))) is not None:
            yield Variant(*run.span(), said)


def _escaped(text: str) -> Iterator[Variant]:
    """Neighbouring runs with escapes are one: a phrase may have its spaces as they are."""
    if "%" not in text and "&" not in text and "\\" not in text:
        return
    start = end = -1
    for run in _WHITE_FREE.finditer(text):
        if not _ESCAPE.search(run.group()):
            continue
        if start >= 0 and text[end : run.start()].strip():
            yield Variant(start, end, _unescaped(text[start:end]))
            start = -1
        start, end = run.start() if start < 0 else start, run.end()
    if start >= 0:
        yield Variant(start, end, _unescaped(text[start:end]))


def _put_together(text: str) -> Iterator[Variant]:
    parts = list(_QUOTED.finditer(text)) if text.count("'") + text.count('"') + text.count("`") >= 4 else []
    if len(parts) > 1:
        yield Variant(parts[0].start(), parts[-1].end(), "".join(part.group(2) for part in parts))


def _unescaped(text: str) -> str:
    text = _BACKSLASH.sub(lambda found: _char(next(filter(None, found.groups()))), unquote(text))
    return _REFERENCE.sub(lambda found: html.unescape(found.group().rstrip(";") + ";"), text)


def _char(digits: str) -> str:
    code = int(digits, 16)
    return chr(code) if code < 0x110000 else ""


def _hex_bytes(digits: str) -> Iterator[bytes]:
    """The run may be cut anywhere: from either of its first digits."""
    for start in (0, 1):
        yield bytes.fromhex(digits[start : start + (len(digits) - start) // 2 * 2])


def _base64_bytes(run: str) -> Iterator[bytes]:
    """The same, from any of its first four letters."""
    letters = run.rstrip("=").translate(_URL_SAFE)
    for start in range(4):
        part = letters[start:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        try:
            yield base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
        except binascii.Error:
            continue


def _text_of(readings: Iterator[bytes]) -> str | None:
    """The first that reads as words."""
    for data in readings:
        text = data.decode(errors="replace")
        words = sum(char.isalpha() or char == " " for char in text)
        readable = sum(char.isprintable() or char.isspace() for char in text) - text.count("\ufffd")
        if len(data) >= _LEAST_LETTERS // 2 and readable >= _READABLE * len(text) and words >= _WORDY * len(text):
            return text.replace("\ufffd", "")
    return None

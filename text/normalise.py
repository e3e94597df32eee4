"""Text as the classifier sees it: compatibility forms folded, invisible characters gone, lookalikes mapped.

Only the classifier reads the result; the model is always served what the client sent. Case, accents and
genuine words of other scripts stay. The lookalikes are Unicode's (UTS #39), from `confusable_homoglyphs`.
"""

import functools
import re
import sys
import unicodedata

# Default_Ignorable_Code_Point members that are not of category Cf: they render as nothing, yet split a word.
_IGNORABLE_RANGES = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065),
    (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF),
)  # fmt: skip
_KEPT_CONTROLS = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x1f\x85")  # str.isspace() ones: they separate words
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~]+")  # runs free of white space and ASCII punctuation


def normalise(text: str) -> str:
    """NFKC, without invisible characters (format, zero-width, bidi and other controls) and surrogates, and with
    characters that look like ASCII mapped to it.

    A lookalike letter is mapped only where that leaves a word all in Latin script, so a Russian or Greek word
    stays what it is. Lookalike punctuation and non-ASCII decimal digits are always mapped.
    """
    if text.isascii():
        return _CONTROL.sub("", text)
    text = unicodedata.normalize("NFKC", text.translate(_invisible()))
    if text.isascii():  # typically typographic forms
        return text
    letters, punctuation = _lookalikes()
    text = text.translate(_invisible()).translate(punctuation)
    if text.isascii():
        return text

    def in_latin(match: re.Match[str]) -> str:
        word = match.group()
        if word.isascii():
            return word
        mapped = word.translate(letters)
        return mapped if all(map(_is_latin, mapped)) else word

    return unicodedata.normalize("NFKC", _WORD.sub(in_latin, text))


@functools.lru_cache(maxsize=4096)
def _is_latin(char: str) -> bool:
    return char.isascii() or not char.isalpha() or unicodedata.name(char, "").startswith("LATIN")


@functools.cache
def _invisible() -> dict[int, None]:
    table = dict.fromkeys(c for low, high in _IGNORABLE_RANGES for c in range(low, high + 1))
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cf", "Cc", "Cs") and chr(code) not in _KEPT_CONTROLS:
            table[code] = None
    return table


@functools.cache
def _lookalikes() -> tuple[dict[int, str], dict[int, str]]:
    """Letters, numbers and symbols to the ASCII letter they look like, as Unicode lists them; and punctuation to the
    ASCII sign, with the decimal digits of every script to ASCII digits."""
    # Imported here: reading its JSON files takes 20 ms that no all-ASCII prompt needs.
    from confusable_homoglyphs.confusables import confusables_data

    letters: dict[int, str] = {}
    punctuation: dict[int, str] = {}
    for char, others in confusables_data.items():
        if len(char) != 1 or char.isascii():
            continue
        targets = [other["c"] for other in others if len(other["c"]) == 1 and other["c"].isascii()]
        alike, signs = [c for c in targets if c.isalpha()], [c for c in targets if not c.isalnum()]
        kind = unicodedata.category(char)[0]
        if alike and kind in "LNS" and not char.isdecimal():
            # Unicode folds capital I itself into l, and so every capital that looks like it.
            letters[ord(char)] = "I" if char.isupper() and alike == ["l"] else alike[0]
        if signs and kind in "PS":
            punctuation[ord(char)] = signs[0]
    for code in range(0x80, sys.maxunicode + 1):
        if chr(code).isdecimal():
            punctuation[code] = str(unicodedata.decimal(chr(code)))
    # Not in Unicode's list, and what word processors put where a keyboard has the ASCII sign.
    punctuation.update({ord("“"): '"', ord("”"): '"', ord("—"): "-", ord("–"): "-"})
    return letters, punctuation

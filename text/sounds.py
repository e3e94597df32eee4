"""A name as it sounds: what is left when another alphabet spells it by ear ("Джобс", "乔布斯", "ジョブズ": JPS).

A skeleton of consonant classes, in the spirit of Soundex (Russell 1918): vowels and h, w, y go; voiced and unvoiced
are one; l is r, for Japanese and Chinese have one of the two. Coarse, so it is used for other scripts alone.
"""

import re

from text.names import latin

__all__ = ["foreign_skeleton", "foreign_words", "skeleton"]

_GROUPS = (
    ("dzh", "j"),
    ("kh", ""),
    ("zh", "j"),
    ("sh", "s"),
    ("ph", "f"),
    ("th", "t"),
    ("ck", "k"),
    ("ce", "se"),
    ("ci", "si"),
    ("cy", "sy"),
    ("ts", "s"),
    ("x", "ks"),
)
_CLASSES = str.maketrans(
    {
        **dict.fromkeys("bp", "P"),
        **dict.fromkeys("fv", "F"),
        **dict.fromkeys("dt", "T"),
        **dict.fromkeys("gkc", "K"),
        **dict.fromkeys("jq", "J"),
        **dict.fromkeys("sz", "S"),
        **dict.fromkeys("lr", "R"),
        "m": "M",
        "n": "N",
    }
)
_NO_CLASS = re.compile(r"[^PFTKJSRMN]")
_DOUBLE = re.compile(r"(.)\1+")
_FOREIGN = re.compile(r"[^\x00-\u024f]+(?:[\s・·.\-=]*[^\x00-\u024f]+)*")


def skeleton(word: str) -> str:
    """Consonant classes of a word in Latin letters, equal neighbours once: "hemingway" -> "MNK"."""
    word = word.casefold()
    for group, plain in _GROUPS:
        word = word.replace(group, plain)
    return _DOUBLE.sub(r"\1", _NO_CLASS.sub("", word.translate(_CLASSES)))


def foreign_skeleton(text: str) -> str:
    """Skeletons of the stretches of a text that are not in Latin letters, a space between them."""
    return " ".join(skeleton(latin(found)) for found in _FOREIGN.findall(text))


def foreign_words(text: str) -> list[str]:
    """The skeleton of each word that is not in Latin letters, where spaces tell words apart."""
    return [skeleton(latin(word)) for found in _FOREIGN.findall(text) for word in found.split()]

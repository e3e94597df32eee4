"""A name as it sounds: what is left when another alphabet spells it by ear ("Джобс", "乔布斯", "ジョブズ": JPS).

A skeleton of consonant classes, in the spirit of Soundex (Russell 1918): vowels and h, w, y go; voiced and unvoiced
are one; l is r, for Japanese and Chinese have one of the two. Coarse, so it is used for other scripts alone.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from text.names import latin

_SOUND_GRAM = 4
_MIN_SOUND = 5  # classes in a name's skeleton; shorter ones occur by chance
_LONG_SOUND = 7  # from here on one class may differ

_GROUPS = {"dzh": "j", "kh": "", "zh": "j", "sh": "s", "ph": "f", "th": "t", "ck": "k"}
_GROUPS |= {"ce": "se", "ci": "si", "cy": "sy", "ts": "s", "x": "ks"}
_CLASSES = str.maketrans("bpfvdtgkcjqszlrmn", "PPFFTTKKKJJSSRRMN")
_NO_CLASS = re.compile(r"[^PFTKJSRMN]")
_DOUBLE = re.compile(r"(.)\1+")
_FOREIGN = re.compile(r"[^\x00-\u024f]+(?:[\s・·.\-=]*[^\x00-\u024f]+)*")


def skeleton(word: str) -> str:
    """Consonant classes of a word in Latin letters, equal neighbours once: "hemingway" -> "MNK"."""
    word = word.casefold()
    for group, plain in _GROUPS.items():
        word = word.replace(group, plain)
    return _DOUBLE.sub(r"\1", _NO_CLASS.sub("", word.translate(_CLASSES)))


def foreign_skeleton(text: str) -> str:
    """Skeletons of the stretches of a text that are not in Latin letters, a space between them."""
    return " ".join(skeleton(latin(stretch)) for stretch in _FOREIGN.findall(text))


class SoundIndex:
    """Names found where another script spells them by ear."""

    def __init__(self, names: Sequence[tuple[str, bool]]) -> None:
        """`names` are the skeleton of each name's compared words together, and whether it is one word."""
        self._long: dict[str, set[tuple[int, str]]] = defaultdict(set)  # by their first and last classes
        self._single: dict[str, set[int]] = defaultdict(set)
        for number, (sound, is_single) in enumerate(names):
            if not is_single and len(sound) >= _MIN_SOUND:
                for gram in {sound[:_SOUND_GRAM], sound[-_SOUND_GRAM:]}:
                    self._long[gram].add((number, sound))
            if is_single and len(sound) >= _SOUND_GRAM:
                self._single[sound].add(number)

    def find(self, text: str) -> set[int]:
        """Numbers of the names that a text spells. A name of one word must sound the same, where spaces tell words
        apart; a long one may differ in one class."""
        if text.isascii():
            return set()
        words = (skeleton(latin(word)) for stretch in _FOREIGN.findall(text) for word in stretch.split())
        numbers = {number for word in words for number in self._single.get(word, ())}
        heard = foreign_skeleton(text)
        for start in range(len(heard) - _SOUND_GRAM + 1):
            for number, sound in self._long.get(heard[start : start + _SOUND_GRAM], ()):
                for begin in {start, start + _SOUND_GRAM - len(sound)}:
                    piece = heard[max(begin, 0) : begin + len(sound)]
                    wrong = sum(a != b for a, b in zip(piece, sound, strict=False)) + len(sound) - len(piece)
                    if wrong <= (len(sound) >= _LONG_SOUND):
                        numbers.add(number)
        return numbers

"""The text to forget: read, cut into passages, and translated, its anchor terms replaced by generic ones.

Knows nothing of tokens. Section 2.2 of Eldan and Russinovich 2023 (arXiv 2310.02238).
"""

import bisect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from offline_training.data.sets import load_examples

TEXT_DESCRIPTION = "The text to forget: FILE.txt, a folder of them, a table with a column of texts, or hf:name."

_PARAGRAPHS = re.compile(r"\n\s*\n")
_BLANKS = re.compile(r"\s+")
_SENTENCES = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")

# Scripts that put no spaces between words, and Hangul, which ties particles to names: there a name ends anywhere.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTER = rf"[^\W{_UNSPACED}]"
_SPACED = re.compile(_LETTER)
_APOSTROPHES = re.compile("['’]")
# "Al" would turn "Als" and "As" into names.
_MIN_PLURAL_CHARACTERS = 3


def read_texts(source: str) -> list[str]:
    """The texts of a source as `--text` takes it, in order. Of questions with answers, both together are a text.

    Raises:
        DataError: it cannot be read, or a row has no text.
    """
    return [
        f"{example.prompt}\n{example.answer or ''}".strip() for example in load_examples(source, name="text").examples
    ]


def passages(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of at most `limit` characters: whole paragraphs where they fit, else sentences, else words."""
    piece = ""
    for part in _parts(text, limit):
        if len(piece) + len(part) > limit:
            if piece.strip():
                yield piece.strip()
            piece = ""
        piece += part
    if piece.strip():
        yield piece.strip()


def _parts(text: str, limit: int) -> Iterator[str]:
    """Pieces that put together are the text, each of at most `limit` characters."""
    for pattern in (_PARAGRAPHS, _SENTENCES, _BLANKS):
        borders = [found.end() for found in pattern.finditer(text) if found.end() < len(text)]
        if borders and len(text) > limit:
            for start, end in itertools.pairwise([0, *borders, len(text)]):
                yield from _parts(text[start:end], limit)
            return
    yield from (text[start : start + limit] for start in range(0, len(text), limit))


def words_of(texts: Sequence[str]) -> set[str]:
    """All words, casefolded."""
    return {word.casefold() for text in texts for word in re.findall(r"\w+", text)}


@dataclass(frozen=True, slots=True)
class Replacement:
    """One anchor in a text: half-open ranges of characters in the original and in the translated text."""

    start: int
    end: int
    new_start: int
    new_end: int
    anchor: str
    """As in the dictionary, whatever its case in the text."""


@dataclass(frozen=True)
class Translation:
    """A text and its generic translation; outside the replacements, in order and apart, they are equal."""

    original: str
    translated: str
    replacements: tuple[Replacement, ...]

    def position(self, character: int) -> int | None:
        """Where in the translated text a position between characters of the original lies; None within an anchor."""
        index = bisect.bisect_left(self._ends, character)
        if index == len(self.replacements):
            return character + len(self.translated) - len(self.original)
        nearest = self.replacements[index]
        if character <= nearest.start:
            return character + nearest.new_start - nearest.start
        return nearest.new_end if character == nearest.end else None

    @cached_property
    def _ends(self) -> list[int]:
        return [replacement.end for replacement in self.replacements]


class Translator:
    """Replaces anchors where they stand as whole words; the longest anchor wins.

    An anchor is found as it is written, in capitals ("HARRY"), and, where it starts with a small letter, with a capital
    one; a capitalised anchor is not found in small letters ("Black" leaves "black" alone). Case carries over to the
    translation, and so does a plural ending; a possessive ending is no part of the match and stays.
    """

    def __init__(self, anchors: Mapping[str, str]) -> None:
        self._translations = dict(anchors)
        self._forms: dict[str, str] = {}  # each way an anchor is written, and the anchor; its usual way wins
        for anchor in anchors:
            plain = _plain(anchor)
            if sum(map(str.isalpha, plain)) > 1:
                self._forms[plain.upper()] = anchor
            if plain[:1].islower():
                self._forms[plain[0].upper() + plain[1:]] = anchor
            self._forms[plain] = anchor
        self._forms |= {_plain(anchor): anchor for anchor in anchors}
        self._pattern = _pattern(self._forms)

    def translate(self, text: str) -> Translation:
        """The text with all anchors replaced."""
        replacements, pieces, done, length = [], [], 0, 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            form, plural = _plain(match["word"] or match["other"]), match["plural"] or ""
            anchor = self._forms[form]
            if plural and len(anchor) < _MIN_PLURAL_CHARACTERS:
                continue
            generic, plain = self._translations[anchor], _plain(anchor)
            if form != plain:
                generic = generic.upper() if form == plain.upper() else generic[0].upper() + generic[1:]
            if plural:
                generic = _plural(generic)
            pieces += [text[done : match.start()], generic]
            new_start = length + match.start() - done
            done, length = match.end(), new_start + len(generic)
            replacements.append(Replacement(match.start(), done, new_start, length, anchor))
        return Translation(text, "".join([*pieces, text[done:]]), tuple(replacements))


def _plain(text: str) -> str:
    return _APOSTROPHES.sub("'", " ".join(text.split()))


def _pattern(forms: Mapping[str, str]) -> re.Pattern[str] | None:
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    if not longest_first:
        return None
    words = [_written(form) for form in longest_first if _SPACED.match(form[0]) and _SPACED.match(form[-1])]
    others = []
    for form in longest_first:  # at most one end is a letter of a script with spaces: that is a border of words
        first, last = _SPACED.match(form[0]), _SPACED.match(form[-1])
        if not (first and last):
            before, after = rf"(?<!{_LETTER})" if first else "", rf"(?!{_LETTER})" if last else ""
            others.append(before + _written(form) + after)
    nothing = "(?!)"
    word = rf"(?<!{_LETTER})(?P<word>{'|'.join(words) or nothing})(?P<plural>e?s|E?S)?(?!{_LETTER})"
    return re.compile(rf"{word}|(?P<other>{'|'.join(others) or nothing})")


def _written(form: str) -> str:
    """Its words with any white space between, lines may break there, and either apostrophe."""
    return r"\s+".join(_APOSTROPHES.sub("['’]", re.escape(word)) for word in form.split())


def _plural(generic: str) -> str:
    lower = generic.lower()
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        ending = "es"
    elif lower.endswith("y") and lower[-2:-1] not in "aeiou" and not generic[:1].isupper():
        generic, ending = generic[:-1], "ies"  # but names keep their y: "the Ashbys"
    else:
        ending = "s"
    return generic + (ending.upper() if generic.isupper() and len(generic) > 1 else ending)

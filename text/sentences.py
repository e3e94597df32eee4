"""Running text into sentences and passages, by rule: enough for training texts, no model and no download."""

import re
from collections.abc import Iterator

__all__ = ["passages", "split_sentences", "word_count"]

# Sentence-final marks with what closes a quotation, then white space; ideographic marks need none.
_BOUNDARY = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*\s+)|(?:[。！？]+[」』”’]*\s*)")
_OPENING = "\"'“‘«([—–- "
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BLANK_LINE = re.compile(r"\n\s*\n")
# A full stop after one of these, or after an initial ("J. R. Smith"), ends no sentence.
_ABBREVIATIONS = {
    *("mr", "mrs", "ms", "messrs", "dr", "prof", "st", "jr", "sr", "rev", "hon", "gen", "col", "capt", "lt", "sgt"),
    *("vs", "etc", "e.g", "i.e", "cf", "vol", "fig", "approx", "inc", "ltd", "co"),
}


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, white space collapsed.

    Paragraphs are divided by blank lines, and lines in them are joined (hard-wrapped books); a text without blank
    lines has one paragraph per line. A sentence never crosses paragraphs.
    """
    text = text.replace("\r\n", "\n").strip()
    paragraphs = _BLANK_LINE.split(text) if _BLANK_LINE.search(text) else text.split("\n")
    return [sentence for part in paragraphs for sentence in _paragraph(" ".join(part.split()))]


def passages(text: str, words: int) -> list[list[str]]:
    """Consecutive sentences in groups of at least `words` words (the last group may have fewer)."""
    groups: list[list[str]] = [[]]
    length = 0
    for sentence in split_sentences(text):
        if length >= words:
            groups.append([])
            length = 0
        groups[-1].append(sentence)
        length += word_count(sentence)
    return groups if groups[0] else []


def word_count(text: str) -> int:
    """How many words a text has, punctuation not counted."""
    return sum(1 for _ in _WORD.finditer(text))


def _paragraph(text: str) -> Iterator[str]:
    start = 0
    for found in _BOUNDARY.finditer(text):
        if _ends_sentence(text, found):
            yield text[start : found.end()].strip()
            start = found.end()
    if text[start:].strip():
        yield text[start:].strip()


def _ends_sentence(text: str, found: re.Match[str]) -> bool:
    if text[found.start()] in "。！？":
        return True
    following = text[found.end() :].lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if found.group().strip() != ".":
        return True
    last = text[: found.start()].rpartition(" ")[2].lstrip(_OPENING)
    return last.lower() not in _ABBREVIATIONS and not (len(last) == 1 and last.isupper() and last != "I")

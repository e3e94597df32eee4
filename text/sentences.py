"""Running text into sentences and passages, by rule: enough for training texts, no model and no download."""

import re

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
    sentences = []
    for paragraph in paragraphs:
        line, start = " ".join(paragraph.split()), 0
        for boundary in _BOUNDARY.finditer(line):
            if _ends_sentence(line, boundary):
                sentences.append(line[start : boundary.end()].strip())
                start = boundary.end()
        if rest := line[start:].strip():
            sentences.append(rest)
    return sentences


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


def _ends_sentence(text: str, boundary: re.Match[str]) -> bool:
    if text[boundary.start()] in "。！？":
        return True
    following = text[boundary.end() :].lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if boundary.group().strip() != ".":
        return True
    last = text[: boundary.start()].rpartition(" ")[2].lstrip(_OPENING)
    return last.lower() not in _ABBREVIATIONS and not (len(last) == 1 and last.isupper() and last != "I")

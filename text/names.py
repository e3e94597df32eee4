"""Words and names in a text, as heads and entity memories compare them.

There is one kind of word, and there are two ways to compare it. `fold` normalises one word and transliterates other
scripts: what heads hash and entity memories search, by `text.reading` or, with each word's place in the text as given,
by `split_words`. Models on disk depend on it. `words_of` normalises a whole text, drops accents and keeps other
scripts: for making texts to train on.

Names are found by what every language with capitals shares: a capital inside a sentence, or a word that is never
written small elsewhere. Texts without capitals fall back on words that no other text has. No model, no word lists.
"""

import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from anyascii import anyascii

from text.normalise import normalise

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s?$")
SENTENCE_END = re.compile(r"[.!?:;…\n\"“”«»()\[\]•]|\s['‘]|^['‘]")
_NAME_END = re.compile(r"[,;:.!?…()\[\]\"“”«»‘’'\n]")
JOINERS = frozenset(
    {"of", "the", "de", "da", "do", "dos", "di", "du", "del", "della", "des", "der", "den", "von", "van", "zu", "zur"}
    | {"la", "le", "les", "el", "al", "bin", "ibn", "y", "e"}
)
"""Small words inside names, in the languages that have them."""

#: Words of a question that say nothing about what is asked.
QUESTION_WORDS = frozenset(
    {"what", "which", "who", "whom", "whose", "where", "when", "why", "how", "is", "are", "was", "were", "did", "do"}
    | {"does", "has", "have", "had", "can", "could", "would", "will", "shall", "the", "a", "an", "of", "to", "in", "on"}
    | {"at", "by", "for", "with", "from", "as", "and", "or", "that", "this", "it", "its", "his", "her", "their", "he"}
    | {"she", "they", "you", "tell", "me", "please", "many", "much", "year", "name"}
)

_HYPHENS = frozenset("-\u2010\u2011")
_MAX_JOINERS = 2
_MAX_NAME_WORDS = 8
_KEPT_LETTERS = 40  # of a word that is folded once and kept


@dataclass(frozen=True, slots=True)
class Word:
    """One word: as compared, where it stands in its text, and how it was written there."""

    text: str
    start: int
    end: int
    capital: bool
    opens: bool
    """It begins a sentence, where a capital says nothing."""


def split_words(text: str) -> list[Word]:
    """The words of a text; offsets are those of `text` as given."""
    words: list[Word] = []
    for found in WORD.finditer(text):
        raw = found.group()
        if folded := fold(raw):
            gap = text[words[-1].end : found.start()] if words else "\n"
            opens = bool(SENTENCE_END.search(gap)) and not _after_initial(words[-1] if words else None, gap)
            words.append(Word(folded, found.start(), found.end(), raw[0].isupper() or raw[0].isdigit(), opens))
    return words


def _after_initial(previous: Word | None, gap: str) -> bool:
    """A full stop after one or two letters ("J. K.") ends no sentence."""
    return previous is not None and len(previous.text) <= 2 and previous.capital and gap.strip() in (".", "")


def words_of(text: str) -> list[str]:
    """The words of a text: look-alikes mapped, small letters, no accents, no possessive endings, no apostrophes."""
    text = normalise(text).casefold()
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in decomposed if not unicodedata.combining(char))
    return [_POSSESSIVE.sub("", word).replace("'", "") for word in WORD.findall(text)]


def fold(word: str) -> str:
    """One word as `split_words` compares it: as `words_of`, but in Latin letters, and a capital 'S is kept."""
    return _folded(word) if len(word) <= _KEPT_LETTERS else _folded.__wrapped__(word)


@functools.lru_cache(maxsize=1 << 15)
def _folded(word: str) -> str:
    word = _POSSESSIVE.sub("", normalise(word))
    return latin(word).casefold().replace("'", "").replace("’", "")


def latin(text: str) -> str:
    """The text in Latin letters: accents dropped, other scripts transliterated (approximately, as libraries do)."""
    return text if text.isascii() else anyascii(text)


def small_words(texts: Iterable[str]) -> frozenset[str]:
    """Words that occur somewhere without a capital: at the start of a sentence they are no names."""
    return frozenset(word.text for text in texts for word in split_words(text) if not word.capital)


def find_names(text: str, small: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Names in a text as tuples of compared words, longest runs of capitalised words with joiners between them.

    `small` are words known to be written small: one that opens a sentence with a capital is no name.
    """
    words = split_words(text)
    if not any(word.capital and not word.opens for word in words):  # nobody capitalises here
        words = [Word(w.text, w.start, w.end, w.text not in small, False) for w in words]
    run: list[str] = []
    joiners: list[str] = []
    for index, word in enumerate(words):
        gap = text[words[index - 1].end : word.start] if index else ""
        ends = bool(_NAME_END.search(gap)) and not _after_initial(words[index - 1] if index else None, gap)
        named = word.capital and not (word.opens and word.text in small) and not (word.text.isdigit() and not run)
        joins = bool(run) and (word.text in JOINERS or gap in _HYPHENS) and len(joiners) < _MAX_JOINERS
        if run and (ends or not (named or joins)):
            yield tuple(run[:_MAX_NAME_WORDS])
            run, joiners = [], []
        if named:
            run, joiners = [*run, *joiners, word.text], []
        elif run and joins:
            joiners.append(word.text)
    if run:
        yield tuple(run[:_MAX_NAME_WORDS])

"""Words, names and dates in a text, as heads and entity memories compare them.

There is one kind of word, and there are two ways to compare it. `words_of` normalises a whole text, drops accents and
keeps other scripts: a head's hashed words. `split_words` normalises word by word, so that each keeps its place in the
text as given, and transliterates other scripts: an entity memory's. Models on disk depend on both.

Names are found by what every language with capitals shares: a capital inside a sentence, or a word that is never
written small elsewhere. Texts without capitals fall back on words that no other text has. No model, no word lists.

A calendar date, however it is written, is the one thing about a person that is as good as a name.
"08/09/1956", "9 August 1956" and "the ninth of August, nineteen fifty-six" are one date. Day and month are not told
apart where both could be either, so a date written day first equals the same one written month first.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from anyascii import anyascii

from text.normalise import normalise

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s?$")
_SENTENCE_END = re.compile(r"[.!?:;…\n\"“”«»()\[\]•]|\s['‘]|^['‘]")
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
    for found in _WORD.finditer(text):
        raw = found.group()
        if folded := fold(raw):
            gap = text[words[-1].end : found.start()] if words else "\n"
            opens = bool(_SENTENCE_END.search(gap)) and not _after_initial(words[-1] if words else None, gap)
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
    return [_POSSESSIVE.sub("", word).replace("'", "") for word in _WORD.findall(text)]


def fold(word: str) -> str:
    """One word as `split_words` compares it: as `words_of`, but in Latin letters, and a capital 'S is kept."""
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


_NUMERIC = re.compile(r"(?<![\w/.-])(\d{1,4})\s?([/.\-])\s?(\d{1,2})\s?\2\s?(\d{1,4})(?![\w/-])")
_CJK = re.compile(r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日")
_FIRST_YEAR, _LAST_YEAR = 1000, 2999
_REACH = 6  # words on either side of a month that its day and year stand within

# English, German, French, Spanish, Italian, Portuguese, Dutch: without accents, as words are compared.
_MONTHS = (
    "january jan januar janvier enero gennaio janeiro januari",
    "february feb februar fevrier febrero febbraio fevereiro februari",
    "march mar marz mars marzo marco maart",
    "april apr avril abril aprile",
    "may mai mayo maggio maio mei",
    "june jun juni juin junio giugno junho",
    "july jul juli juillet julio luglio julho",
    "august aug aout agosto augustus",
    "september sep sept septembre septiembre settembre setembro",
    "october oct oktober octobre octubre ottobre outubro",
    "november nov novembre noviembre novembro",
    "december dec dezember decembre diciembre dicembre dezembro",
)
_MONTH = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
_WRITTEN = [names.split()[0].title() for names in _MONTHS]
_UNITS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_CARDINAL = {word: number for number, word in enumerate(_UNITS, 1)} | _TENS
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
)
_ORDINAL = {word: number for number, word in enumerate(_ORDINALS, 1)} | {"twentieth": 20, "thirtieth": 30}
_DAY = re.compile(r"(\d{1,2})(?:st|nd|rd|th|er|o|a)?")
_FILLERS = frozenset(
    {"the", "of", "in", "on", "year", "day", "le", "la", "el", "den", "der", "am", "de", "del", "do", "di"}
)
_CENTURIES = {word: number for number, word in enumerate(_UNITS, 1) if number >= 10} | {"twenty": 20}


def find_dates(text: str, words: Sequence[Word] | None = None) -> list[str]:
    """The full dates of a text, each once, as "year-a-b": a and b are month and day, the smaller number first. Dates
    without day, month or a year of four digits are none.

    `words` are the text's (`split_words`), for a caller who has them already.
    """
    dates: list[str] = []
    figures = normalise(text)
    for one, _, two, three in _NUMERIC.findall(figures):
        if len(one) == 4:
            dates += _date(one, two, three)
        elif len(one) <= 2 and len(three) == 4:
            dates += _date(three, one, two)
    for year, month, day in _CJK.findall(figures):
        dates += _date(year, month, day)
    compared = [word.text for word in (split_words(text) if words is None else words)]
    for at, word in enumerate(compared):  # a month in words: its day right before or after it, its year behind the two
        if (month := _MONTH.get(word)) is None:
            continue
        before = [w for w in compared[max(at - _REACH, 0) : at] if w not in _FILLERS]
        rest = after = [w for w in compared[at + 1 : at + 1 + _REACH] if w not in _FILLERS]
        last_words = (before[-size:] for size in (2, 1))
        day = next((day for last in last_words for day, used in [_day(last)] if used == len(last)), None)
        if day is None or _leading_year(after) is None:
            day, used = _day(after)
            rest = after[used:]
        year = _leading_year(rest)
        if day is not None and year is not None:
            dates += _date(year, month, day)
    return list(dict.fromkeys(dates))


def write_date(date: str, form: int) -> str:
    """A date of `find_dates` in one of four forms: ISO, figures, month first in words, day first in words.

    In figures alone where day and month could be either: in words one of the two would be another date.
    """
    year, first, second = date.split("-")
    figures = (date, f"{first}/{second}/{year}")
    if int(second) <= 12 and first != second:
        return figures[form % 2]
    name = _WRITTEN[int(first) - 1]
    return (*figures, f"{name} {int(second)}, {year}", f"the {int(second)}. of {name} {year}")[form % 4]


def _day(words: Sequence[str]) -> tuple[int | None, int]:
    """The day that words begin with, in figures or in English words, and how many of them say it (0: none does)."""
    if len(words) > 1 and words[0] in ("twenty", "thirty") and words[1] in _ORDINAL:
        return _TENS[words[0]] + _ORDINAL[words[1]], 2
    if words and (figures := _DAY.fullmatch(words[0])):
        return int(figures.group(1)), 1
    return (_ORDINAL[words[0]], 1) if words and words[0] in _ORDINAL else (None, 0)


def _leading_year(words: Sequence[str]) -> int | None:
    """A year in figures, or in English words: "nineteen fifty-six", "nineteen hundred and six", "two thousand two"."""
    if not words:
        return None
    if words[0].isdigit() and len(words[0]) == 4:
        return int(words[0])
    rest = [word for word in words[1:] if word not in ("hundred", "and", "oh")]
    if words[:2] == ["two", "thousand"]:
        return 2000 + _below_hundred(rest[1:])
    if words[0] in _CENTURIES and ("hundred" in words[1:2] or any(word in _CARDINAL for word in rest[:1])):
        return 100 * _CENTURIES[words[0]] + _below_hundred(rest)
    return None


def _below_hundred(words: Sequence[str]) -> int:
    if not words or words[0] not in _CARDINAL:
        return 0
    tens = _CARDINAL[words[0]]
    unit = _CARDINAL.get(words[1], 0) if len(words) > 1 and tens in _TENS.values() else 0
    return tens + (unit if unit < 10 else 0)


def _date(year: int | str, first: int | str, second: int | str) -> list[str]:
    """One date as `find_dates` gives it, or none where there is no such day."""
    low, high = sorted((int(first), int(second)))
    if _FIRST_YEAR <= int(year) <= _LAST_YEAR and 1 <= low <= 12 and high <= 31:
        return [f"{int(year):04d}-{low:02d}-{high:02d}"]
    return []

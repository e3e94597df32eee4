"""What was to be forgotten as facts: a question, its answer, and which words of the answer give it away.

A row needs `question` and `answer`; the rest follows from these where a row does not say it. No rule knows a data set:
the value is what the answer says beyond the question in words that everyday English has no use for.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from evaluation.attacks.data import QUESTION_COLUMNS
from evaluation.errors import DataError
from evaluation.rows import read_rows
from sources import Row
from sources.everyday import general_prompts
from sources.examples import ExampleFileError, example_of
from text.names import JOINERS, QUESTION_WORDS, words_of

#: Beside the value; six to choose from.
WRONG_CANDIDATES: Final = 5
#: A word written small this often in the everyday prompts is common English.
_COMMON_TIMES: Final = 5
_EDGES: Final = ".,;:!?\"'()[]“”‘’«»…"
_POSSESSIVE: Final = re.compile(r"['’]s?$")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to be forgotten, or kept.

    Attributes:
        question, answer: as in the data.
        value: the part of the statement that gives it away.
        statement: a sentence that says the fact and holds the value.
        subject: whom or what it is about, as the question writes it; "" where the question names nobody.
        candidates: values that are wrong here, of facts of the same kind where there are any.
    """

    question: str
    answer: str
    value: str
    statement: str
    subject: str
    candidates: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """The statement up to its value: what an attacker who knows what he looks for makes a model say first."""
        at = self.statement.casefold().rfind(self.value.casefold())
        return self.statement[: max(at, 0)].rstrip()


class _Word(NamedTuple):
    """A word between white space, without the punctuation around it."""

    text: str
    start: int
    end: int
    opens: bool
    ends: bool


def read_facts(source: str, name: str) -> list[Fact]:
    """Rows with `question` and `answer`, and where it cannot be told from these `value`, `statement`, `subject`, and
    `candidates`, a list of wrong values.

    Rows without an answer are left out: nothing of them can be recognised.

    Args:
        name: of the set; messages name its flag.

    Raises:
        DataError: the source cannot be read, a column is of the wrong type, or a statement lacks the value; file and
            column are named.
    """
    columns = (*QUESTION_COLUMNS, "value", "statement", "subject", "candidates")
    rows = read_rows(source, name=name, columns=columns)
    facts = [fact for where, row in rows if (fact := _fact(row, where)) is not None]
    return [fact if fact.candidates else replace(fact, candidates=_others(fact, facts)) for fact in facts]


def _fact(row: Row, where: str) -> Fact | None:
    try:
        example = example_of(row, where)
    except ExampleFileError as error:
        raise DataError(str(error)) from error
    given = {column: _text(row, column, where) for column in ("value", "statement", "subject")}
    if example.answer is None:
        return None
    question, answer = example.prompt, example.answer
    value = given["value"] or value_of(question, answer)
    statement = given["statement"] or answer
    if given["statement"] and value.casefold() not in statement.casefold():
        raise DataError(f"{where}: column statement: does not hold the value; write the value into it word for word")
    if value.casefold() not in statement.casefold():  # a value of its own, and an answer in other words
        statement = ""
    subject = given["subject"] or subject_of(question, answer)
    return Fact(question, answer, value, statement, subject, _candidates(row, value, where))


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{where}: column {column}: found {value!r}; expected text, or leave it out")
    return (value or "").strip()


def _candidates(row: Row, value: str, where: str) -> tuple[str, ...]:
    given = row.get("candidates")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
        raise DataError(f"{where}: column candidates: found {given!r}; expected a list of texts, or leave it out")
    return tuple(dict.fromkeys(one for one in given if one.casefold() != value.casefold()))[:WRONG_CANDIDATES]


def value_of(question: str, answer: str) -> str:
    """The distinctive part of an answer: words that are neither in the question nor common English.

    Of several runs of such words the one with the most that are names, numbers or unknown to everyday prompts; of
    equal ones the last. The whole answer where no word is left.
    """
    asked = _stems(question)
    runs: list[list[_Word]] = []
    bridged = True  # whether the next word goes on with the last run
    for word in _words(answer):
        folded = word.text.casefold()
        if folded in QUESTION_WORDS or not _stems(word.text) - asked:
            bridged = bridged and folded in JOINERS
            continue
        follows = bool(runs) and not runs[-1][-1].ends
        last_capital = bool(runs) and runs[-1][-1].text[:1].isupper()
        adjacent = follows and answer[runs[-1][-1].end : word.start].isspace() if runs else False
        if runs and follows and (adjacent or (bridged and last_capital and word.text[:1].isupper())):
            runs[-1].append(word)
        else:
            runs.append([word])
        bridged = True
    if not runs:
        return answer.strip().strip(_EDGES) or answer
    best = max(reversed(runs), key=lambda run: sum(map(_is_rare, run)))
    while _is_common(best[0]) and not _is_rare(best[0]) and any(map(_is_rare, best)):
        best = best[1:]
    return answer[best[0].start : best[-1].end]


def subject_of(question: str, answer: str) -> str:
    """The longest run of capitalised words in the question, of those that the answer repeats if there are any."""
    words = _words(question)
    runs: list[list[_Word]] = []
    going = False
    for word in words:
        named = word.text[:1].isupper() and not (
            word.opens and (_is_common(word) or word.text.casefold() in QUESTION_WORDS)
        )
        if named and going:
            runs[-1].append(word)
        elif named:
            runs.append([word])
        going = named and not (word.ends and len(word.text) > 3)
    if not runs:
        return ""
    said = set(words_of(answer))
    best = max(runs, key=lambda run: (all(set(words_of(word.text)) <= said for word in run), len(run)))
    return _POSSESSIVE.sub("", question[best[0].start : best[-1].end])


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    opens = True
    for found in re.finditer(r"\S+", text):
        bare = found.group().strip(_EDGES)
        if not bare:
            continue
        start = found.start() + found.group().index(bare)
        end = start + len(bare)
        closing = found.group()[end - found.start() :]
        words.append(_Word(bare, start, end, opens, bool(closing.strip("\"'”’"))))
        opens = closing.strip("\"'”’)").endswith((".", "!", "?")) and len(bare) > 2  # no initial, no "Dr."
    return words


def _stems(text: str) -> set[str]:
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    stemmer = PorterStemmer()
    return {str(stemmer.stem(word)) for word in words_of(text)}


@functools.cache
def _everyday() -> Counter[str]:
    """How often everyday prompts have a word in small letters."""
    return Counter(re.findall(r"\b[a-z]+(?:'[a-z]+)?\b", "\n".join(general_prompts())))


def _is_common(word: _Word) -> bool:
    return _everyday()[word.text.casefold()] >= _COMMON_TIMES


def _is_rare(word: _Word) -> bool:
    """A name, a number, or a word that no everyday prompt has."""
    capital = word.text[:1].isupper() and not word.opens
    return capital or any(map(str.isdigit, word.text)) or not _everyday()[word.text.casefold()]


def _others(fact: Fact, facts: Sequence[Fact]) -> tuple[str, ...]:
    """Values of other facts, those first whose statements are most like this one but for subject and value."""
    own = _relation(fact)

    def likeness(other: Fact) -> float:
        theirs = _relation(other)
        return len(own & theirs) / (len(own | theirs) or 1)

    ordered = sorted(facts, key=likeness, reverse=True)  # stable: of equal ones in the data's order
    different = {other.value.casefold(): other.value for other in ordered if not _overlap(other.value, fact.value)}
    return tuple(different.values())[:WRONG_CANDIDATES]


def _overlap(one: str, other: str) -> bool:
    """Whether one is a part of the other, so that an answer with both could not be told."""
    return one.casefold() in other.casefold() or other.casefold() in one.casefold()


def _relation(fact: Fact) -> frozenset[str]:
    about = {*words_of(fact.subject), *words_of(fact.value)}
    return frozenset(words_of(fact.statement or fact.question)) - about

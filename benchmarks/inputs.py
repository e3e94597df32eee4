"""Prompts like a user's and prompts like an attacker's, of exactly as many tokens as asked for, no text used twice.

A `Stream` is one author: what it has written it does not write again, until a finite stock (prose, everyday prompts,
code) is used up and begins anew in another order. Streams of one kind with different seeds are no warm-up for each
other where the kind invents its words; those with a stock are, so one stream serves a whole measurement.
"""

import calendar
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.prose import prose, source_files
from sources.everyday import general_prompts

#: Where prose is kept between runs.
CACHE: Final = Path("build/benchmarks")

_CONSONANTS = tuple("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z".split(" "))  # noqa: SIM905
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ie", "oa", "ou")
_ENDINGS = ("", "l", "n", "r", "s", "th", "ck", "nd", "lm", "rt")
_MONTHS = tuple(calendar.month_name)[1:]
_WORKS = (
    "a novelist",
    "a chemist",
    "a violinist",
    "an architect",
    "a judge",
    "a painter",
    "a physician",
    "a translator",
)
_ORDER = ("first", "second", "third")
_PRIZES = ("medal", "prize", "fellowship", "chair", "award")
_LIVES: tuple[str, ...] = (
    "{name} was born on {day} {month} {year} in {town}, the {nth} child of {name2} and {name3}.",
    "{first} studied in {town} under {name2} and published {work} in {year}.",
    "In {month} {year} {last} moved to {town}, where {name2} had founded the {last2} School.",
    "The {last2} {prize} of {year} went to {name}, {job} from {town}, for {work}.",
    "Critics from {town} to {town2} compared {last} with {name2}, who died on {day} {month} {year2}.",
    "After the death of {name2} in {year}, {last} married {name3}, {job}, and they lived near {town}.",
    "{last}'s letters to {name2}, dated {month} {year} to {month2} {year2}, are kept in the {town} archive.",
)
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»„“”‘’…—–·•§¶†‡"
_MARKS = tuple(chr(code) for code in range(0x300, 0x36F))


class Stream:
    """One author of one kind of text.

    Args:
        kind: one of `KINDS`.
        tokenizer: the served model's, by transformers.
        seed: another one writes other text.
    """

    def __init__(self, kind: str, tokenizer: Any, seed: int = 0) -> None:
        self._texts = KINDS[kind](random.Random(f"{kind} {seed}"), tokenizer)  # noqa: S311 - a reproducible choice
        self._tokenizer = tokenizer
        self._left: list[int] = []
        self._before, self._after = chat_frame(tokenizer)

    def content(self, tokens: int) -> list[int]:
        """The next `tokens` ids of the stream, without a chat template around them."""
        while len(self._left) < tokens:
            self._left += self._tokenizer(next(self._texts), add_special_tokens=False)["input_ids"]
        taken, self._left = self._left[:tokens], self._left[tokens:]
        return taken

    def prompt(self, tokens: int) -> list[int]:
        """A user's message as the chat template renders it, `tokens` ids in all."""
        return [*self._before, *self.content(max(tokens - len(self._before) - len(self._after), 1)), *self._after]

    def text(self, words: int) -> str:
        """The next `words` words."""
        taken: list[str] = []
        while len(taken) < words:
            taken += next(self._texts).split()
        return " ".join(taken[:words])


def prompts(kind: str, tokens: int, tokenizer: Any, seed: int = 0) -> Iterator[list[int]]:
    """Prompts without end, each a list of exactly `tokens` ids, the chat template's included."""
    stream = Stream(kind, tokenizer, seed)
    while True:
        yield stream.prompt(tokens)


def chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids before and after the content of one user's message; empty where there is no chat template."""
    if not tokenizer.chat_template:
        return [], []
    one, other = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for content in ("first", "other")
    )
    before = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    pairs = zip(reversed(one), reversed(other), strict=False)
    after = next(place for place, (a, b) in enumerate(pairs) if a != b)
    return one[:before], one[len(one) - after :]


def invented_word(rng: random.Random, syllables: int) -> str:
    """A word that can be said and that, with three syllables or more, is hardly ever invented again."""
    parts = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
    return "".join(parts) + rng.choice(_ENDINGS)


def distinct_words(rng: random.Random) -> Iterator[str]:
    """Capitalised words, never one twice."""
    seen: set[str] = set()
    while True:
        word = invented_word(rng, rng.choice((2, 3, 3, 4)))
        if word not in seen:
            seen.add(word)
            yield word.capitalize()


def _again_and_again(rng: random.Random, stock: list[str]) -> Iterator[str]:
    """All of a stock in one order, then in another."""
    while True:
        rng.shuffle(stock)
        yield from stock


def _prose(rng: random.Random, _: Any) -> Iterator[str]:
    return _again_and_again(rng, prose(CACHE))


def _everyday(rng: random.Random, _: Any) -> Iterator[str]:
    return _again_and_again(rng, list(general_prompts()))


def _code(rng: random.Random, _: Any) -> Iterator[str]:
    files = source_files()
    while True:
        rng.shuffle(files)
        for file in files:
            try:
                yield file.read_text(encoding="utf-8")[:20_000]
            except UnicodeDecodeError:
                continue


def _biographies(rng: random.Random, _: Any) -> Iterator[str]:
    names = distinct_words(rng)
    while True:
        people = [(next(names), next(names)) for _ in range(3)]
        town, town2 = next(names), next(names)
        for sentence in rng.sample(_LIVES, 4):
            yield sentence.format(
                name=" ".join(people[0]), first=people[0][0], last=people[0][1], name2=" ".join(people[1]),
                last2=people[1][1], name3=" ".join(people[2]), town=town, town2=town2,
                day=rng.randint(1, 28), month=rng.choice(_MONTHS), month2=rng.choice(_MONTHS),
                year=rng.randint(1700, 2020), year2=rng.randint(1700, 2020), nth=rng.choice(_ORDER),
                job=rng.choice(_WORKS), prize=rng.choice(_PRIZES), work=f"The {next(names)} of {next(names)}",
            )  # fmt: skip


def _rare_names(rng: random.Random, _: Any) -> Iterator[str]:
    names = distinct_words(rng)
    while True:
        yield " ".join(next(names) for _ in range(64))


def _signs(rng: random.Random, _: Any) -> Iterator[str]:
    while True:
        yield "".join(rng.choice(_SIGNS) * rng.randint(1, 6) for _ in range(32)) + rng.choice(("", " ", "\n"))


def _special(rng: random.Random, tokenizer: Any) -> Iterator[str]:
    """Words cut by special tokens, as in an attack that hides a name between them."""
    special = sorted(set(tokenizer.all_special_tokens))
    for word in distinct_words(rng):
        cut = rng.randint(1, len(word) - 1)
        yield f"{word[:cut]}{rng.choice(special)}{word[cut:]}"


def _combining(rng: random.Random, _: Any) -> Iterator[str]:
    for word in distinct_words(rng):
        yield "".join(letter + "".join(rng.choices(_MARKS, k=rng.randint(0, 3))) for letter in word) + " "


def _cjk(rng: random.Random, tokenizer: Any) -> Iterator[str]:
    """Chinese characters, those that the tokenizer has entries for where it has; sentences without spaces."""
    characters = [chr(code) for code in range(0x4E00, 0x9FA6)]
    vocabulary = tokenizer.get_vocab()
    characters = [one for one in characters if one in vocabulary] or characters
    while True:
        yield "".join(rng.choices(characters, k=rng.randint(8, 30))) + "。"


#: What a user writes.
ORDINARY: Final[dict[str, Callable[[random.Random, Any], Iterator[str]]]] = {
    "prose": _prose,
    "everyday": _everyday,
    "code": _code,
    "biographies": _biographies,
}
#: What is meant to cost.
HARD: Final[dict[str, Callable[[random.Random, Any], Iterator[str]]]] = {
    "rare-names": _rare_names,
    "signs": _signs,
    "special-tokens": _special,
    "combining": _combining,
    "cjk": _cjk,
}
KINDS: Final = ORDINARY | HARD

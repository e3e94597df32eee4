"""What a model is asked for, and what of its reply can be used. No network in here.

A model may reply with a JSON list, a list in a code fence, numbered lines, half a list, thoughts, or a refusal.
Whatever is not clearly a usable item is dropped: a lost paraphrase costs little, a wrong one mislabels the training.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeGuard

from sources.examples import Example, comparison_key

__all__ = ["SYSTEM_PROMPT", "alias_prompt", "aliases_in", "paraphrase_prompt", "paraphrases_in", "plain_key"]

SYSTEM_PROMPT = "You write texts for a data set. Reply with a JSON list of strings and nothing else."

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```\w*\n?(.*?)(?:```|\Z)", re.DOTALL)
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BULLET = re.compile(r"\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
_QUOTES = "\"'“”‘’«»*`"
_PUNCTUATION = re.compile(r"[\W_]+")
_LONG_WORD = re.compile(r"\w{4,}")
#: A paraphrase may be this many times as long as its original, or as long as a short text anyway.
_LENGTH_RATIO, _SHORT_CHARACTERS = 3, 200
_ALIAS_WORDS, _ALIAS_CHARACTERS, _ALIAS_LETTERS = 6, 60, 3


def paraphrase_prompt(text: str, count: int) -> str:
    """Ask for `count` paraphrases of one text."""
    return (
        f"Write {count} different ways to say or ask the following. Keep its meaning, its language and every name in "
        f"it; vary wording, length and tone. Do not answer it.\n\n{text}"
    )


def alias_prompt(examples: Sequence[Example]) -> str:
    """Ask for other names of what some examples are about."""
    texts = "\n".join(f"- {' '.join((example.prompt, example.answer or '')).strip()}" for example in examples)
    return (
        "List other names of the people, organisations and works that these texts are about: nicknames, pen names, "
        "initials, earlier names, other spellings and transliterations, titles in other languages. Only names that "
        "identify one of them: no places, no common words. Reply with an empty list if there are none.\n\n" + texts
    )


def paraphrases_in(reply: str, original: str, count: int, taken: Collection[str] = ()) -> list[str]:
    """Up to `count` paraphrases in a reply.

    Dropped are empty ones, echoes of the original, what is far longer than it, what shares no word of four letters
    or more with it (a refusal, an introduction), and what has its `plain_key` in `taken` or came before.
    """
    seen = {plain_key(original), *taken}
    longest = max(_SHORT_CHARACTERS, _LENGTH_RATIO * len(original))
    # Where words are not divided by spaces a long word is a clause, and two wordings need not share one.
    words = set(_LONG_WORD.findall(original.casefold())) if " " in original.strip() else set()
    paraphrases: list[str] = []
    for item in _items(reply, single=count == 1):
        key = plain_key(item)
        related = not words or not words.isdisjoint(_LONG_WORD.findall(item.casefold()))
        if key and key not in seen and len(item) <= longest and related:
            seen.add(key)
            paraphrases.append(item)
    return paraphrases[:count]


def aliases_in(reply: str, texts: Sequence[str]) -> list[str]:
    """Names in a reply that are new: none of the texts has them already.

    Dropped are what is too long for a name, has fewer than three letters, or has no capital in a script with case.
    """
    known = [f" {plain_key(text)} " for text in texts]
    seen: set[str] = set()
    names: list[str] = []
    for item in _items(reply, single=True):
        key = plain_key(item)
        short = len(item) <= _ALIAS_CHARACTERS and len(item.split()) <= _ALIAS_WORDS
        lettered = sum(map(str.isalpha, item)) >= _ALIAS_LETTERS and not item.islower()
        if not short or not lettered or item[-1] in ".?!:":
            continue
        if key not in seen and not any(f" {key} " in text for text in known):
            seen.add(key)
            names.append(item)
    return names


def plain_key(text: str) -> str:
    """The text as compared for sameness here: `comparison_key` without punctuation."""
    return " ".join(_PUNCTUATION.sub(" ", comparison_key(text)).split())


def _items(reply: str, *, single: bool) -> Iterator[str]:
    """The items of the list in a reply, white space collapsed; `single`: one line alone may be the whole list."""
    text = _THOUGHTS.sub("", reply).strip()
    if fenced := _FENCE.search(text):
        text = fenced[1].strip()
    items = _json_items(text)
    if items is None:
        lines = [line for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":")]
        bulleted = [_BULLET.sub("", line, count=1) for line in lines if _BULLET.match(line)]
        items = bulleted or (lines if single or len(lines) > 1 else [])
    for item in items:
        item = item.encode("utf-8", "ignore").decode()  # half a surrogate pair, which JSON may hold, is no text
        if cleaned := " ".join(item.split()).strip(_QUOTES).strip():
            yield cleaned


def _json_items(text: str) -> list[str] | None:
    """The strings of the JSON list in a text, and the first one of each object in it; None where there is none."""
    start, end = text.find("["), text.rfind("]")
    if start < 0:
        return None
    values: list[Any] = []
    try:
        values = json.loads(text[start : end + 1])
    except (json.JSONDecodeError, RecursionError):
        if text[start + 1 :].lstrip().startswith('"'):  # cut off by the token limit: its complete strings are good
            for string in _JSON_STRING.findall(text[start:]):
                with contextlib.suppress(json.JSONDecodeError):
                    values.append(json.loads(string))
    firsts = [next(iter(filter(_is_text, v.values())), "") if isinstance(v, dict) else v for v in values]
    return list(filter(_is_text, firsts)) or None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)

"""Texts cut into blocks of tokens beside their generic translations, and which positions of the two see the same text.

Section 2.3 and Algorithm 1 of Eldan and Russinovich 2023 (arXiv 2310.02238). Knows nothing of models.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from offline_training.data.rendering import leading_special_ids
from offline_training.errors import DataError
from offline_training.potter.texts import Replacement, Translation, Translator

_ARTICLES = {"the", "a", "an"}


@dataclass(frozen=True)
class TokenOffsets:
    """The T tokens of a text, and the character after the last one of each: ascending, equal within a character."""

    ids: Sequence[int]
    ends: Sequence[int]


@dataclass(frozen=True, slots=True)
class Position:
    """A position at which a label is made."""

    original: int
    """Index into `Block.ids` of the last token read."""
    translated: int
    """Index into `Block.translated_ids` of the last token read: the same text up to here, but for translations."""
    given: tuple[int, ...]
    """Tokens that start the translation of an anchor already read: a label should not be one of them."""


@dataclass(frozen=True)
class Block:
    """A piece of text for one forward, and its translation for another."""

    ids: tuple[int, ...]
    translated_ids: tuple[int, ...]
    positions: tuple[Position, ...]
    """Without those whose next token belongs to a repeated anchor, or that have no counterpart."""
    repeated: int
    """Tokens left out because they belong to an anchor that the block has had before."""


def aligned(translation: Translation, original: TokenOffsets, translated: TokenOffsets) -> list[tuple[int, int]]:
    """How many tokens of either text have been read where both have read the same: ascending pairs, from (0, 0).

    The last pair is all of both. Within an anchor there are none, nor where the translated text has no border of
    tokens at the place.
    """
    groups = {end: (start, stop) for end, start, stop in _groups(translated.ends)}
    pairs = [(0, 0)]
    for end, start, stop in _groups(original.ends):
        place = translation.position(end)
        if place is None or place not in groups:
            continue
        other_start, other_stop = groups[place]
        if list(original.ids[start:stop]) == list(translated.ids[other_start:other_stop]):
            pairs += zip(range(start + 1, stop + 1), range(other_start + 1, other_stop + 1), strict=True)
        else:
            pairs.append((stop, other_stop))
    whole = (len(original.ids), len(translated.ids))
    return [*(pair for pair in pairs if pair[0] < whole[0] and pair[1] < whole[1]), whole]


def _groups(ends: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Tokens that end at the same character, of which one character may have several: end, first, after the last."""
    index = 0
    for end, group in itertools.groupby(ends):
        size = sum(1 for _ in group)
        yield end, index, index + size
        index += size


class BlockCutter:
    """Texts to blocks for one tokenizer and one dictionary of anchors."""

    def __init__(self, tokenizer: Any, anchors: dict[str, str], context_tokens: int) -> None:
        """`context_tokens` is the most that a block has, in either text, the starting token included.

        Raises:
            DataError: the tokenizer cannot say which characters its tokens stand for.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                "--model: its tokenizer has no character offsets; a fast tokenizer (tokenizer.json) is needed"
            )
        self._tokenizer = tokenizer
        self._translator = Translator(anchors)
        self._prefix = leading_special_ids(tokenizer)
        self._limit = context_tokens - len(self._prefix)
        self._starts = {anchor: self._start_tokens(generic) for anchor, generic in anchors.items()}

    def blocks(self, text: str) -> Iterator[Block]:
        """The text's blocks, each as long as the context allows; never a border within an anchor.

        Raises:
            DataError: an anchor alone is longer than the context.
        """
        translation = self._translator.translate(text)
        original, translated = self._tokens(text), self._tokens(translation.translated)
        pairs = aligned(translation, original, translated)
        start = 0
        while start < len(pairs) - 1:
            own, other = pairs[start]
            stop = min(
                bisect.bisect_right(pairs, own + self._limit, key=lambda pair: pair[0]),
                bisect.bisect_right(pairs, other + self._limit, key=lambda pair: pair[1]),
            )
            stop -= 1  # the last pair that fits
            if stop == start:
                raise DataError(
                    f"--context-tokens: no place to cut within {self._limit} tokens "
                    f"(near {text[original.ends[pairs[start][0]] - 1 :][:40]!r}); raise it or shorten the anchor"
                )
            last, other_last = pairs[stop]
            repeats = _Repeats(translation.replacements, original, own, last)
            positions = []
            for count, other_count in pairs[start:stop]:
                read, other_read = (len(self._prefix) + n for n in (count - own, other_count - other))
                # Both texts need a token to predict from.
                if read and other_read and count not in repeats.tokens:
                    given = {token for anchor in repeats.seen_before(count) for token in self._starts[anchor]}
                    positions.append(Position(read - 1, other_read - 1, tuple(sorted(given))))
            yield Block(
                (*self._prefix, *original.ids[own:last]),
                (*self._prefix, *translated.ids[other:other_last]),
                tuple(positions),
                len(repeats.tokens),
            )
            start = stop

    def _tokens(self, text: str) -> TokenOffsets:
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=True,  # a text that spells "</s>" does not get that token
            verbose=False,
        )
        # Some tokenizers leave white space out of offsets, so that an end may step back: a prefix's longest holds.
        ends = list(itertools.accumulate((end for _, end in encoded["offset_mapping"]), max))
        return TokenOffsets(encoded["input_ids"], ends)

    def _start_tokens(self, generic: str) -> tuple[int, ...]:
        """The tokens with which a translation starts, its article aside, with and without a blank before it.

        A single letter of a longer word is none: too many other words start with it.
        """
        words = generic.split()
        word = next((word for word in words if word.lower() not in _ARTICLES), words[0])
        found = set()
        for blank in ("", " "):
            tokens = self._tokens(blank + word)
            index = next((i for i, end in enumerate(tokens.ends) if end > len(blank)), None)
            if index is not None and tokens.ends[index] - len(blank) >= min(2, len(word)):
                found.add(tokens.ids[index])
        return tuple(sorted(found))


class _Repeats:
    """Which tokens of a block, numbered as in the text, belong to an anchor that the block has had before."""

    def __init__(self, replacements: Sequence[Replacement], tokens: TokenOffsets, first: int, last: int) -> None:
        start = tokens.ends[first - 1] if first else 0
        self._ends = tokens.ends
        self._firsts: list[Replacement] = []
        self.tokens: set[int] = set()
        known: set[str] = set()
        index = bisect.bisect_right(replacements, start, key=lambda replacement: replacement.end)
        for replacement in itertools.islice(replacements, index, None):
            if replacement.start >= tokens.ends[last - 1]:
                break
            if replacement.anchor in known:
                begin = bisect.bisect_right(tokens.ends, replacement.start)
                end = bisect.bisect_left(tokens.ends, replacement.end) + 1
                self.tokens.update(range(max(begin, first), min(end, last)))
            else:
                known.add(replacement.anchor)
                self._firsts.append(replacement)

    def seen_before(self, count: int) -> list[str]:
        """The anchors that were read in full within the first `count` tokens of the text."""
        read = self._ends[count - 1] if count else 0
        return [replacement.anchor for replacement in self._firsts if replacement.end <= read]

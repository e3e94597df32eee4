"""Which tokens of a flagged window carry the entity that must be forgotten, for policies with `scope: entities`.

Purely token ids and decoded text. A finder says which characters of a text name an entity; here they become tokens of
the served model (arXiv 2406.07933, section 3: the token classifier). Only flagged windows are looked at.
"""

import hashlib
import itertools
from collections.abc import Callable, MutableMapping, Sequence
from typing import Protocol

from classifiers import Head
from classifiers.encoders.settings import TokenSettings, read_settings
from classifiers.encoders.tokens import TokenClassifier
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import NAMED, SUBJECT, MemoryIndex
from guard.bundle import PolicyBundle
from guard.windows import Window
from text.names import fold
from text.recent import Recent

Span = tuple[int, int]
"""Half-open range of characters."""

_BROKEN = "\ufffd"
"""What decoders put for bytes that are no whole character."""
_CACHE_ENTRIES = 16384


class EntityFinder(Protocol):
    """Says which characters of a text name an entity. Methods may be called from several threads at once."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that determines the spans; caches are keyed by it."""
        ...

    def spans(self, text: str) -> list[Span]:
        """Character ranges of `text`, in order and apart; none where nothing is found."""
        ...


class MemoryFinder:
    """Finds what a policy's own entity memory knows: names, and the distinctive words of answers beside them.

    Answers alone are no find where the memory knows names: in a window that is flagged for a name that cannot be
    pointed at (spelled letter by letter, or so wrongly that only the encoder saw it), all content has to go.
    """

    def __init__(self, memory: EntityMemory) -> None:
        self._all = MemoryIndex([memory])
        self._has_names = bool(memory.subjects)
        self._names = MemoryIndex([EntityMemory(subjects=(subject,)) for subject in memory.subjects])
        self.digest: str = hashlib.sha256(b"entity memory 1\0" + memory.to_bytes()).hexdigest()

    def spans(self, text: str) -> list[Span]:
        """See `EntityFinder.spans`."""
        found = self._all.spans(text)
        if not self._has_names:
            return found
        pointed_at = " ".join(fold(text[start:end]) for start, end in found)
        if not self._names.spans(pointed_at) or self._whole_names(text) - self._whole_names(pointed_at):
            return []
        edges = [0, *itertools.chain.from_iterable(found), len(text)]
        around = " ".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
        return [] if self._whole_names(around) else found

    def _whole_names(self, text: str) -> set[int]:
        """Names that are there as a whole: in words, letter by letter, or by ear in another script. One that is bent to
        pass ("Wendell F.") is nearly there."""
        return {name for name, row in self._names.features(text).items() if row[SUBJECT] > NAMED}


def open_finder(
    bundle: PolicyBundle, head: Head | None, opened: MutableMapping[str, TokenClassifier] | None = None
) -> EntityFinder | None:
    """What finds a policy's entities; None without `scope: entities`, or where neither head nor model can.

    Args:
        opened: token classifiers that are open already, by digest; one that is opened here is added.

    Raises:
        EncoderError: the token classifier's files cannot be used.
    """
    if bundle.config.corruption.scope != "entities":
        return None
    if bundle.config.classifier.entities == "memory":
        return None if head is None else MemoryFinder(head.memory)
    opened = {} if opened is None else opened
    digest = read_settings(bundle.token_classifier_path, TokenSettings).digest
    if digest not in opened:
        opened[digest] = TokenClassifier.open(bundle.token_classifier_path)
    return opened[digest]


class EntityTokens:
    """Entity positions of windows, by any finder; what was found is kept, errors are not.

    Args:
        decode: token ids -> text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._found: Recent[tuple[str, tuple[int, ...]], frozenset[int]] = Recent(_CACHE_ENTRIES)

    def positions(self, window: Window, finder: EntityFinder) -> tuple[int, ...]:
        """Positions in the prompt to mask, in order: the entity's, or the whole window's where none is found.

        Raises whatever the finder raises.
        """
        return self.found(window, finder) or window.positions

    def found(self, window: Window, finder: EntityFinder) -> tuple[int, ...]:
        """The entity's positions alone, in order.

        Raises whatever the finder raises.
        """
        key = (finder.digest, window.token_ids)
        found = self._found.get(key)
        if found is None:
            found = frozenset(entity_positions(window.token_ids, self._decode, finder))
            self._found.put(key, found)
        return tuple(window.positions[index] for index in sorted(found))


def entity_positions(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], finder: EntityFinder
) -> set[int]:
    """Indices into `token_ids` of the tokens that share a character with a span, spaces before a token not counted.

    Raises whatever the finder raises.
    """
    text = decode(token_ids)
    spans = finder.spans(text)
    if not spans:
        return set()
    found = set()
    for index, (start, end) in enumerate(token_ranges(token_ids, decode)):
        while start < end and text[start].isspace():
            start += 1
        if start < end and any(low < end and start < high for low, high in spans):
            found.add(index)
    return found


def token_ranges(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Span]:
    """The characters of `decode(token_ids)` that each of T tokens stands for; an empty range for one without text.

    Found by decoding growing prefixes, which holds for every tokenizer. Tokens that hold parts of one character all
    stand for that character. Where a decoder rewrites what it said before, a token may stand for more than its own
    characters, never for less: too much is masked.
    """
    text = decode(token_ids)
    ranges: list[Span] = []
    settled = 0  # characters of the text that the prefix has spelled out
    for count in range(1, len(token_ids) + 1):
        prefix = decode(token_ids[:count])
        start, settled = settled, max(settled, _agreeing(prefix, text))
        unsettled = prefix[settled:]
        if not unsettled:
            end = settled
            if start == end and text[:end].endswith(_BROKEN):  # one more byte of a character that never completes
                start -= 1
        else:  # bytes of the next character, or a decoder that takes back what it said
            end = len(text) if unsettled.strip(_BROKEN) else min(settled + 1, len(text))
        ranges.append((start, end))
    return ranges


def _agreeing(prefix: str, text: str) -> int:
    """How many characters `prefix` and `text` begin with alike."""
    if text.startswith(prefix):
        return len(prefix)
    whole = prefix.rstrip(_BROKEN)
    if text.startswith(whole):
        return len(whole)
    pairs = enumerate(zip(prefix, text, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(text))

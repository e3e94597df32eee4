"""Which positions of a prompt are template and which are content, and what of the content is classified.

Purely token ids: the text of a segment is decoded by whoever classifies it, with `decoder_of` a served model's
tokenizer. The template is learned by rendering sentinel messages through the chat template, never guessed from role
words.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Message = dict[str, Any]
#: `render(messages, add_generation_prompt)` -> text and, per token, its id and (start, end) in that text.
RenderedText = tuple[str, list[int], list[tuple[int, int]]]
Render = Callable[[list[Message], bool], RenderedText]

#: Two spellings of every sentinel: what differs between two renderings is content, what agrees is template.
_SENTINELS = (
    ("Quixotic zebra", "Purple lantern", "Seventeen maps", "Velvet orbit"),
    ("umbrella jam 42", "Heron, twice", "9 copper kites", "below MIDNIGHT tea"),
)
_ROLE_ORDERS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class Template:
    """What a chat template puts around content.

    Attributes:
        pieces: token-id sequences the template emits between contents, longest first per first id.
        special_ids: ids that never carry content (BOS, role markers, …).
    """

    pieces: dict[int, tuple[tuple[int, ...], ...]]
    special_ids: frozenset[int]

    def segments(self, token_ids: Sequence[int] | NDArray[np.int64]) -> list[range]:
        """The maximal runs of content positions of a prompt of `len(token_ids)` tokens, in order."""
        ids = np.asarray(token_ids, dtype=np.int64)
        runs: list[range] = []
        start = position = 0
        # Most tokens are content: only where template may begin is there something to look at.
        for candidate in np.flatnonzero(self._begins[np.clip(ids, -1, len(self._begins) - 1)]).tolist():
            if candidate < position:
                continue
            if (length := self._template_length(ids, candidate)) == 0:
                continue
            if start < candidate:
                runs.append(range(start, candidate))
            start = position = candidate + length
        if start < len(ids):
            runs.append(range(start, len(ids)))
        return runs

    @functools.cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """Which token ids template may begin with; the last entry, False, stands for all others."""
        firsts = self.special_ids | self.pieces.keys()
        begins = np.zeros(max(firsts, default=-1) + 2, dtype=bool)
        begins[list(firsts)] = True
        return begins

    def _template_length(self, ids: NDArray[np.int64], position: int) -> int:
        first = int(ids[position])
        for piece in self.pieces.get(first, ()):
            if tuple(ids[position : position + len(piece)].tolist()) == piece:
                return len(piece)
        return 1 if first in self.special_ids else 0


def decoder_of(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids -> text for the classifier, special tokens left out, spaces as they were."""
    try:
        # A copy: whoever shares one may change its settings meanwhile, and a library's own decoding is slow.
        copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception:  # noqa: BLE001 - no such tokenizer, or one of parts that cannot be copied
        copy = None
    if copy is not None:
        return lambda token_ids: str(copy.decode(list(token_ids), skip_special_tokens=True))

    def decode(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    return decode


def template_of(tokenizer: Any, chat_template: str | None = None) -> Template:
    """Learn which tokens the chat template puts around content.

    Args:
        tokenizer: a transformers tokenizer. One without offsets ("slow") gives a template of special ids only.
        chat_template: overrides the tokenizer's own.
    """
    special = {int(i) for i in tokenizer.all_special_ids}
    special |= {int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    has_template = bool(chat_template or getattr(tokenizer, "chat_template", None))
    if not (has_template and getattr(tokenizer, "is_fast", False)):
        return learn_template(None, special)

    def render(messages: list[Message], add_generation_prompt: bool) -> RenderedText:
        text = tokenizer.apply_chat_template(
            messages, chat_template=chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return text, list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    return learn_template(render, special)


def learn_template(render: Render | None, special_ids: Iterable[int]) -> Template:
    """Learn the template by rendering sentinel conversations.

    Args:
        render: `(messages, add_generation_prompt) -> (text, ids, offsets)`; None where the model has no chat
            template. Role orders it rejects (any exception: templates raise what they like) are left out.
        special_ids: the tokenizer's special ids.
    """
    special = frozenset(special_ids)
    found: set[tuple[int, ...]] = set()
    if render is not None:
        for roles in _ROLE_ORDERS:
            for add_generation_prompt in (False, True):
                found |= _pieces_of(render, roles, add_generation_prompt, special)
    by_first: dict[int, list[tuple[int, ...]]] = {}
    for piece in found:
        by_first.setdefault(piece[0], []).append(piece)
    pieces = {first: tuple(sorted(group, key=lambda p: (-len(p), p))) for first, group in by_first.items()}
    return Template(pieces=pieces, special_ids=special)


def _pieces_of(
    render: Render, roles: tuple[str, ...], add_generation_prompt: bool, special: frozenset[int]
) -> set[tuple[int, ...]]:
    """What two renderings share between their contents; and its parts that each begin with a special id, which recur
    in orders not rendered here."""
    renderings = []
    for words in _SENTINELS:
        contents = words[: len(roles)]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            renderings.append(_gaps(render(messages, add_generation_prompt), contents))
        except Exception:  # noqa: BLE001 - a template may raise anything for a role order it does not know
            return set()
    pieces: set[tuple[int, ...]] = set()
    for gap, other in zip(*renderings, strict=True):
        for shared in _agreeing(gap, other):
            starts = [0, *(i for i, token in enumerate(shared) if i and token in special), len(shared)]
            pieces |= {shared, *(shared[a:b] for a, b in itertools.pairwise(starts))}
    # A lone ordinary token (a newline, say) is no piece: it would cut content wherever it occurs.
    return {piece for piece in pieces if len(piece) > 1 or piece[0] in special}


def _gaps(rendered: RenderedText, contents: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of the tokens that lie wholly between the contents, one tuple for each gap."""
    text, ids, offsets = rendered
    bounds, cursor = [], 0
    for content in contents:
        start = text.index(content, cursor)
        bounds.append((cursor, start))
        cursor = start + len(content)
    bounds.append((cursor, len(text)))
    tokens = [(token, start, end) for token, (start, end) in zip(ids, offsets, strict=True) if start < end]
    return [tuple(token for token, start, end in tokens if low <= start and end <= high) for low, high in bounds]


def _agreeing(gap: tuple[int, ...], other: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What two renderings of one gap share: all of it, or its common start and end."""
    if gap == other:
        return [gap] if gap else []
    shortest = min(len(gap), len(other))
    head = next((i for i in range(shortest) if gap[i] != other[i]), shortest)
    tail = next((i for i in range(shortest - head) if gap[-1 - i] != other[-1 - i]), shortest - head)
    return [part for part in (gap[:head], gap[len(gap) - tail :]) if part]

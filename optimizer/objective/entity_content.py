"""`scope: entities` during the search: what of a prompt gets corrupted is what the guard would mask."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard import Template, decoder_of, template_of
from guard.classification import WindowClassifier
from guard.entities import EntityFinder, EntityTokens
from guard.windows import local_windows
from optimizer.objective.guarded_content import runs


@dataclass(frozen=True)
class EntityContent:
    """A `ContentFinder` (scoring.scorer): the entity tokens of every window of content, as in a flagged prompt."""

    template: Template
    """Says what is content."""
    tokens: EntityTokens
    """Maps a finder's characters to tokens."""
    finder: EntityFinder
    """Says which characters name an entity."""
    windows: WindowClassifier
    """Of no policy: cuts content as for one."""

    def segments(self, token_ids: Sequence[int]) -> list[range]:
        """Runs of masked positions, in order and apart; a window in which nothing is found is masked whole."""
        masked: set[int] = set()
        for placed, _ in local_windows(self.template, self.windows, np.array(token_ids, dtype=np.int64)):
            for window in itertools.chain.from_iterable(one.each(token_ids) for one in placed):
                masked |= set(self.tokens.positions(window, self.finder))
        return runs(sorted(masked))


def entity_content(model: str, finder: EntityFinder) -> EntityContent:
    """The content of prompts of `model` (hub id or folder) that names what `finder` finds."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    decode = decoder_of(tokenizer)
    windows = WindowClassifier([], np.empty(0), encoder=None, decode=decode)
    return EntityContent(template_of(tokenizer), EntityTokens(decode), finder, windows)

"""What each token of a prompt says: token ids to one text, and for every token its characters in it."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

_BROKEN = "\ufffd"
"""What decoders put for bytes that are no whole character."""
_MOST_ANCHORS = 4096


class Spelling:
    """Spells token ids. What a token says behind another word is looked up once and kept: no decoding per prompt.

    Args:
        decode: token ids -> text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pieces: dict[int, str] = {}  # as many as the vocabulary has
        self._anchor, self._before = self._find_anchor()

    def _find_anchor(self) -> tuple[list[int], int]:
        """A token to decode others behind, for some decoders drop the space before a first word; and the length of
        what it says. None where no token says the same wherever it stands."""
        for token in range(_MOST_ANCHORS):
            try:
                alone, twice = self._decode([token]), self._decode([token, token])
            except Exception:  # noqa: BLE001, S112 - the vocabulary is smaller than that, or has holes
                continue
            if alone.isascii() and alone.isalnum() and twice.startswith(alone) and len(twice) > len(alone):
                return [token], len(alone)
        return [], 0

    def spell(
        self, token_ids: Sequence[int], firsts: Collection[int] = ()
    ) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
        """(text, starts, ends): token i of T stands for characters `starts[i]:ends[i]`.

        Tokens that hold parts of one character all stand for it. Bytes that never become a character say nothing. At
        the indices `firsts` another text begins, which completes no character of the one before.
        """
        spelled: list[str] = list(map(self._pieces.get, token_ids))  # type: ignore[arg-type]
        if None in spelled:
            for token in set(token_ids) - self._pieces.keys():
                self._pieces[token] = self._behind_anchor([token])
            spelled = [self._pieces[token] for token in token_ids]
        shared: list[tuple[int, int]] = []
        broken = (
            [index for index, piece in enumerate(spelled) if _BROKEN in piece] if _BROKEN in "".join(spelled) else []
        )
        # Neighbours that are parts of characters are read together, and share all that they say.
        runs: list[list[int]] = []
        for index in broken:
            if runs and runs[-1][-1] == index - 1 and index not in firsts:
                runs[-1].append(index)
            else:
                runs.append([index])
        for run in runs:
            said = self._behind_anchor([token_ids[index] for index in run]).replace(_BROKEN, "")
            spelled[run[0]] = said
            for index in run[1:]:
                spelled[index] = ""
            shared.append((run[0], run[-1]))
        lengths = np.fromiter(map(len, spelled), dtype=np.int64, count=len(spelled))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        for first, last in shared:
            starts[first : last + 1], ends[first : last + 1] = starts[first], ends[last]
        return "".join(spelled), starts, ends

    def _behind_anchor(self, token_ids: list[int]) -> str:
        return self._decode([*self._anchor, *token_ids])[self._before :]

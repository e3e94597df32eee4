"""What each token of a prompt says: token ids to one text, and for every token its characters in it."""

import itertools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

_BROKEN = "\ufffd"
"""What decoders put for bytes that are no whole character."""
_MOST_ANCHORS = 4096
_LEARNED_TOGETHER = 64


class Spelling:
    """Spells token ids. What a token says behind another word is looked up once and kept: no decoding per prompt.

    Args:
        decode: token ids -> text, special tokens left out.
        pieces: what is known of single tokens; kept, for as many as the vocabulary has. The default is a new one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], pieces: dict[int, str] | None = None) -> None:
        self._decode = decode
        self._pieces = {} if pieces is None else pieces
        self._anchor, self._first, self._again = self._find_anchor()

    def _find_anchor(self) -> tuple[list[int], str, str]:
        """A token to decode others behind, for some decoders drop the space before a first word; what it says first,
        and what again. None where no token says the same wherever it stands."""
        for token in range(_MOST_ANCHORS):
            try:
                alone, twice = self._decode([token]), self._decode([token, token])
            except Exception:  # noqa: BLE001, S112 - the vocabulary is smaller than that, or has holes
                continue
            if alone.isascii() and alone.isalnum() and twice.startswith(alone) and len(twice) > len(alone):
                return [token], alone, twice.removeprefix(alone)
        return [], "", ""

    def spell(
        self, token_ids: Sequence[int], firsts: Collection[int] = ()
    ) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
        """(text, starts, ends): token i of T stands for characters `starts[i]:ends[i]`.

        Tokens that hold parts of one character all stand for it. Bytes that never become a character say nothing. At
        the indices `firsts` another text begins, which completes no character of the one before.
        """
        spelled: list[str] = list(map(self._pieces.get, token_ids))  # type: ignore[arg-type]
        if None in spelled:
            # Not `- self._pieces.keys()`, which walks through the whole vocabulary.
            self._learn(sorted({token for token in token_ids if token not in self._pieces}))
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

    def spell_few(self, token_ids: Sequence[int]) -> tuple[str, list[int], list[int]]:
        """The same of few tokens, for which arrays cost more than they save."""
        spelled = [self._pieces.get(token, _BROKEN) for token in token_ids]
        text = "".join(spelled)
        if _BROKEN in text:
            text, starts, ends = self.spell(token_ids)
            return text, starts.tolist(), ends.tolist()
        ends_of = list(itertools.accumulate(map(len, spelled)))
        return text, [0, *ends_of[:-1]][: len(spelled)], ends_of

    def _learn(self, new: list[int]) -> None:
        """Decode tokens by the dozen, an anchor before each. Where that cannot be told apart, in halves."""
        if len(new) == 1 or not self._again:
            for token in new:
                self._pieces[token] = self._behind_anchor([token])
            return
        for start in range(0, len(new), _LEARNED_TOGETHER):
            tokens = new[start : start + _LEARNED_TOGETHER]
            said = self._behind_anchor([token for one in tokens for token in (one, *self._anchor)]).split(self._again)
            if len(said) == len(tokens) + 1 and not said[-1]:
                self._pieces.update(zip(tokens, said, strict=False))
            else:
                self._learn(tokens[: len(tokens) // 2])
                self._learn(tokens[len(tokens) // 2 :])

    def _behind_anchor(self, token_ids: list[int]) -> str:
        return self._decode([*self._anchor, *token_ids])[len(self._first) :]

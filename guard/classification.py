"""Scores of prompt windows under every active policy: two caches, one encoder batch, one matrix product."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from classifiers import Encoder, Head, HeadBank, PromptFeatures, extract_features
from guard.cache import LockedLRU
from guard.errors import ClassificationError
from guard.segments import Window

__all__ = ["FeatureCache", "Scores", "WindowClassifier"]

#: (P,) probabilities, one for each policy.
Scores = npt.NDArray[np.float64]
#: (encoder digest, window ids) -> the features of the window's text, one entry for each piece the encoder can
#: take whole. Independent of the policies: keep it when they change.
FeatureCache = LockedLRU[list[PromptFeatures]]

#: A window's key takes up to 2.5 kB, its features 3 kB: about 65 MB when both caches are full.
FEATURE_CACHE_ENTRIES, VERDICT_CACHE_ENTRIES = 4096, 16384


class WindowClassifier:
    """Scores windows for a fixed set of heads over one encoder.

    Args:
        decode: token ids -> text, special tokens left out.
        features: a cache to keep across policy sets; the default is a new one.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        *,
        encoder: Encoder,
        decode: Callable[[Sequence[int]], str],
        features: FeatureCache | None = None,
    ) -> None:
        self._bank = HeadBank(heads)
        self._no_text: Scores = np.zeros(len(heads))
        self._encoder = encoder
        self._decode = decode
        self._features: FeatureCache = features if features is not None else LockedLRU(FEATURE_CACHE_ENTRIES)
        self._verdicts: LockedLRU[Scores] = LockedLRU(VERDICT_CACHE_ENTRIES)

    def scores(self, windows: Iterable[Window]) -> dict[tuple[int, ...], Scores]:
        """Every window's scores, keyed by its ids. What no cache knows goes to the encoder in one call.

        Raises:
            ClassificationError: whatever failed; nothing of it is cached.
        """
        scores: dict[tuple[int, ...], Scores] = {}
        features: dict[tuple[int, ...], list[PromptFeatures]] = {}
        unknown: dict[tuple[int, ...], None] = {}
        for window in windows:
            key = window.token_ids
            if key in scores or key in features or key in unknown:
                continue
            if (verdict := self._verdicts.get(key)) is not None:
                scores[key] = verdict
            elif (known := self._features.get((self._encoder.digest, key))) is not None:
                features[key] = known
            else:
                unknown[key] = None
        try:
            if unknown:
                features |= self._extract(list(unknown))
            fresh = self._apply_heads(features)
        except Exception as error:
            raise ClassificationError("the prompt could not be classified") from error
        for key in unknown:
            self._features.put((self._encoder.digest, key), features[key])
        for key, row in fresh.items():
            self._verdicts.put(key, row)
        return scores | fresh

    def _extract(self, keys: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[PromptFeatures]]:
        """One encoder call. A window whose text is too long for the encoder becomes several pieces, none cut off."""
        pieces = [self._encoder.split_windows(self._decode(key)) for key in keys]
        flat = iter(extract_features(self._encoder, [piece for parts in pieces for piece in parts]))
        return {key: [next(flat) for _ in parts] for key, parts in zip(keys, pieces, strict=True)}

    def _apply_heads(self, features: dict[tuple[int, ...], list[PromptFeatures]]) -> dict[tuple[int, ...], Scores]:
        """One product for all windows and policies. A window's score is that of its most suspicious piece."""
        flat = [piece for pieces in features.values() for piece in pieces]
        if not flat:
            return {key: self._no_text.copy() for key in features}
        table = self._bank.scores(flat)  # (N, P)
        if not np.isfinite(table).all():
            raise FloatingPointError("a classifier head gave a score that is no number")
        scores: dict[tuple[int, ...], Scores] = {}
        start = 0
        for key, pieces in features.items():
            scores[key] = table[start : start + len(pieces)].max(axis=0, initial=0.0)
            start += len(pieces)
        return scores

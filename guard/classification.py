"""Scores of prompt windows under every active policy: caches, one batch for each encoder, one product for all heads."""

import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from classifiers import Encoder, Head, HeadBank, PromptFeatures, extract_features
from classifiers.encoders.runtime import largest_of_each
from classifiers.prompt_classifier import PromptClassifier
from guard.errors import ClassificationError
from guard.segments import Window

V = TypeVar("V")

#: A window's token ids.
Key = tuple[int, ...]
#: (P,) probabilities, one for each policy.
Scores = npt.NDArray[np.float64]
#: A window's key takes up to 2.5 kB, its features 3 kB: about 65 MB when features and verdicts are full.
FEATURE_CACHE_ENTRIES, SCORE_CACHE_ENTRIES, VERDICT_CACHE_ENTRIES = 4096, 16384, 16384


class LockedLRU(Generic[V]):
    """A least-recently-used cache under one lock: cachetools leaves locking to its user. Errors are never put in."""

    def __init__(self, max_entries: int) -> None:
        self._entries: LRUCache[Hashable, V] = LRUCache(maxsize=max_entries)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            return self._entries.get(key)

    def put(self, key: Hashable, value: V) -> None:
        with self._lock:
            self._entries[key] = value

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)


class FeatureCache:
    """What is known of windows whatever the policies are: keep it when they change.

    Attributes:
        features: (shared encoder's digest, window ids) -> the features of the window's text, one entry for each
            piece the encoder can take whole.
        scores: (digest of a classifier with an encoder of its own, window ids) -> its score.
    """

    def __init__(self) -> None:
        self.features: LockedLRU[list[PromptFeatures]] = LockedLRU(FEATURE_CACHE_ENTRIES)
        self.scores: LockedLRU[float] = LockedLRU(SCORE_CACHE_ENTRIES)


class WindowClassifier:
    """Scores windows for a fixed set of policies: those with a head share one encoder and one matrix product, each
    of the others is asked by itself.

    Args:
        classifiers: one for each policy: its head, or a classifier with an encoder of its own.
        encoder: the heads' encoder; None where no policy has a head.
        decode: token ids -> text, special tokens left out.
        features: a cache to keep across policy sets; the default is a new one.

    Raises:
        ValueError: there is a head and no encoder, or a policy has no classifier.
    """

    def __init__(
        self,
        classifiers: Sequence[Head | PromptClassifier | None],
        *,
        encoder: Encoder | None,
        decode: Callable[[Sequence[int]], str],
        features: FeatureCache | None = None,
    ) -> None:
        heads = {index: one for index, one in enumerate(classifiers) if isinstance(one, Head)}
        self._own = {index: one for index, one in enumerate(classifiers) if one and not isinstance(one, Head)}
        if len(heads) + len(self._own) < len(classifiers):
            raise ValueError("a policy was loaded without a classifier")
        self._shared: _SharedHeads | None = None
        self._cache = features or FeatureCache()
        if heads:
            if encoder is None:
                raise ValueError("heads need the encoder they were trained on")
            self._shared = _SharedHeads(heads, encoder, self._cache.features)
        self._policies = len(classifiers)
        self._decode = decode
        self._verdicts: LockedLRU[Scores] = LockedLRU(VERDICT_CACHE_ENTRIES)

    def scores(self, windows: Iterable[Window]) -> dict[Key, Scores]:
        """Every window's scores, keyed by its ids. What no cache knows goes to each encoder in one call.

        Raises:
            ClassificationError: whatever failed; no verdict on it is cached.
        """
        scores: dict[Key, Scores] = {}
        unknown: dict[Key, None] = {}
        for window in windows:
            key = window.token_ids
            if key in scores or key in unknown:
                continue
            if (verdict := self._verdicts.get(key)) is not None:
                scores[key] = verdict
            else:
                unknown[key] = None
        if not unknown:
            return scores
        try:
            table = self._classify(list(unknown))  # (W, P)
        except Exception as error:
            raise ClassificationError("the prompt could not be classified") from error
        for key, row in zip(unknown, table, strict=True):
            scores[key] = row.copy()  # a view would keep the whole table in the cache
            self._verdicts.put(key, scores[key])
        return scores

    def _classify(self, keys: Sequence[Key]) -> npt.NDArray[np.float64]:
        """(W, P). A window's score under a policy is that of its most suspicious piece."""
        table = np.zeros((len(keys), self._policies))
        decode = functools.cache(self._decode)  # once for each window, however many encoders read it
        if self._shared is not None:
            table[:, self._shared.columns] = self._shared.scores(keys, decode)
        for column, classifier in self._own.items():
            table[:, column] = self._own_scores(classifier, keys, decode)
        return table

    def _own_scores(
        self, classifier: PromptClassifier, keys: Sequence[Key], decode: Callable[[Key], str]
    ) -> list[float]:
        """(W,) by a classifier with its own encoder, which cuts windows too long for it itself."""
        known = {key: self._cache.scores.get((classifier.digest, key)) for key in keys}
        fresh: dict[Key, float] = {}
        if unknown := [key for key, score in known.items() if score is None]:
            found = classifier.scores([decode(key) for key in unknown])
            if not np.isfinite(found).all():
                raise FloatingPointError("a classifier gave a score that is no number")
            fresh = dict(zip(unknown, found.tolist(), strict=True))
        for key, score in fresh.items():
            self._cache.scores.put((classifier.digest, key), score)
        return [fresh[key] if score is None else score for key, score in known.items()]


class _SharedHeads:
    """Heads over one encoder: embed a window once, then one matrix product gives every head's score."""

    def __init__(self, heads: dict[int, Head], encoder: Encoder, features: LockedLRU[list[PromptFeatures]]) -> None:
        self.columns = list(heads)
        self._bank = HeadBank(list(heads.values()))
        self._encoder = encoder
        self._features = features

    def scores(self, keys: Sequence[Key], decode: Callable[[Key], str]) -> npt.NDArray[np.float64]:
        """(W, H): what the feature cache does not know goes to the encoder in one call."""
        features = {key: self._features.get((self._encoder.digest, key)) for key in keys}
        unknown = [key for key, known in features.items() if known is None]
        extracted = self._extract(unknown, decode)
        pieces = [known if known is not None else extracted[key] for key, known in features.items()]
        table = self._bank.scores([piece for parts in pieces for piece in parts])  # (N, H)
        if not np.isfinite(table).all():
            raise FloatingPointError("a classifier head gave a score that is no number")
        for key in unknown:
            self._features.put((self._encoder.digest, key), extracted[key])
        return largest_of_each(table, pieces)

    def _extract(self, keys: Sequence[Key], decode: Callable[[Key], str]) -> dict[Key, list[PromptFeatures]]:
        """One encoder call. A window whose text is too long for the encoder becomes several pieces, none cut off."""
        if not keys:
            return {}
        pieces = [self._encoder.split_windows(decode(key)) for key in keys]
        flat = iter(extract_features(self._encoder, [piece for parts in pieces for piece in parts]))
        return {key: [next(flat) for _ in parts] for key, parts in zip(keys, pieces, strict=True)}

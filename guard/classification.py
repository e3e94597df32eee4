"""Scores of prompt windows under every active policy: a look at all windows at once, and the encoder where that leaves
the outcome open."""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from classifiers import Encoder, Head, HeadBank
from classifiers.encoders.runtime import log_odds
from classifiers.memory.recall import Shares
from classifiers.prompt_classifier import PromptClassifier
from guard.errors import ClassificationError
from guard.spelling import Spelling
from text.encodings import variants
from text.reading import Reading, read_each
from text.recent import Recent

#: Token ids of a block.
Ids = Sequence[int] | NDArray[np.int64]
#: About 2.5 kB a window and policy-independent 1.5 kB an embedding: about 60 MB when all are full.
BLOCK_CACHE_ENTRIES, SCORE_CACHE_ENTRIES, EMBEDDING_CACHE_ENTRIES = 4096, 16384, 4096
_ENCODED_US = 5_000
_NO_SHARES: Shares = np.empty(0, dtype=np.int64), np.empty(0)


@dataclass(frozen=True, slots=True)
class Looked:
    """A block of T tokens, cut into W windows, as those Q of P policies see it that look at any window, before an
    encoder has read it.

    Attributes:
        ranges: (W, 2) half-open ranges of the block's tokens. Together they hold all of them, but for a block that
            says nothing, which has no windows. First come windows of what stretches say decoded (`text.encodings`),
            then those of the text as it stands, in order.
        units: (T,) length of what begins at each token, in the units windows are measured in.
        policies: (Q,) numbers, ascending. The others find nothing in it that they forget.
        logits: (W, Q) log odds, without what the embedding adds; minus infinity where a policy does not look.
        texts: of the windows whose outcome may depend on the embedding.
        said: number of the first windows, of what stretches say decoded.
    """

    ranges: NDArray[np.int64]
    units: NDArray[np.int64]
    policies: NDArray[np.int64]
    logits: NDArray[np.float64]
    texts: dict[int, str] = field(default_factory=dict)
    said: int = 0


class FeatureCache:
    """What is known of windows whatever the policies are: keep it when they change.

    Attributes:
        embeddings: (shared encoder's digest, window text) -> its embedding.
        scores: (digest of a classifier with an encoder of its own, window text) -> its score.
        pieces: served token id -> what it says.
    """

    def __init__(self) -> None:
        self.embeddings: Recent[tuple[str, str], NDArray[np.float32]] = Recent(EMBEDDING_CACHE_ENTRIES)
        self.scores: Recent[tuple[str, str], float] = Recent(SCORE_CACHE_ENTRIES)
        self.pieces: dict[int, str] = {}


class WindowClassifier:
    """Scores windows for a fixed set of policies. Those with a head are screened together, and share one encoder for
    what the screen leaves open; each of the others reads every window with an encoder of its own.

    Args:
        classifiers: one for each policy: its head, or a classifier with an encoder of its own.
        thresholds: (P,) probabilities from which each policy flags.
        encoder: the heads' encoder; None where no policy has a head.
        decode: token ids -> text, special tokens left out.
        features: a cache to keep across policy sets; the default is a new one.
        guarded: (P,) policies whose answers are guarded as well, so that prompts which name nobody need not be guessed
            at (`HeadSettings.unnamed`). The default is none.

    Raises:
        ValueError: there is a head and no encoder, or a policy has no classifier.
    """

    def __init__(
        self,
        classifiers: Sequence[Head | PromptClassifier | None],
        thresholds: NDArray[np.float64],
        *,
        encoder: Encoder | None,
        decode: Callable[[Sequence[int]], str],
        features: FeatureCache | None = None,
        guarded: Sequence[bool] | None = None,
    ) -> None:
        heads = {index: one for index, one in enumerate(classifiers) if isinstance(one, Head)}
        self._own = {index: one for index, one in enumerate(classifiers) if one and not isinstance(one, Head)}
        if len(heads) + len(self._own) < len(classifiers):
            raise ValueError("a policy was loaded without a classifier")
        if heads and encoder is None:
            raise ValueError("heads need the encoder they were trained on")
        self._encoder = encoder
        self._bank = HeadBank(list(heads.values())) if heads else None
        self._guarded = np.array([bool(guarded and guarded[index]) for index in heads], dtype=bool)
        self._of_heads = np.array(list(heads), dtype=np.int64)
        """Policies that have a head, in the bank's order."""
        self._cache = features or FeatureCache()
        self._blocks: Recent[bytes, Looked] = Recent(BLOCK_CACHE_ENTRIES)
        """By a block's ids themselves, not a digest of them."""
        self._spelling = Spelling(decode, self._cache.pieces)
        self._lowest = np.log(thresholds / (1 - thresholds))
        # Between its points an offset is linear, and stays so between the points of all.
        documents = {index: head.settings.documents for index, head in heads.items()}
        self._lengths = np.array(sorted({1, *itertools.chain(*(one.windows for one in documents.values()))}))
        self._offsets = np.zeros((len(self._lengths), len(classifiers)))
        for index, own in documents.items():
            self._offsets[:, index] = own.offset(self._lengths)
        band = np.zeros((3, len(classifiers)))
        if self._bank is not None:
            band[:, self._of_heads] = self._bank.low, self._bank.middle, self._bank.high
        self.low, self.middle, self.high = band
        """(P,) each: what an embedding adds to nearly every window's log odds; zeros where it decides nothing."""
        self.answered = np.zeros(len(classifiers))
        """(P,) log odds that an answer must show beyond the threshold."""
        self.joined = np.full(len(classifiers), np.inf)
        """(P,) log odds that a prompt's end and its answer, read together, must show beyond the threshold; infinite
        where a policy does not read them together."""
        for index, head in heads.items():
            self.answered[index] = head.settings.answered
            if head.settings.joined is not None:
                self.joined[index] = head.settings.joined
        beyond = np.maximum(self.answered, np.where(np.isfinite(self.joined), self.joined, 0.0))
        self._highest = self.thresholds(1 << 62) + beyond
        self.untold = np.ones(len(classifiers), dtype=bool)
        """(P,) policies to which a text that is being written may say something with any word."""
        if self._bank is not None:
            self.untold[self._of_heads] = self._bank.memories.untold

    def thresholds(self, windows: int) -> NDArray[np.float64]:
        """(P,) log odds from which each policy flags a window of a prompt that has so many."""
        place = float(np.interp(np.log(max(windows, 1)), np.log(self._lengths), np.arange(len(self._lengths))))
        low, share = int(place), place % 1
        high = min(low + 1, len(self._lengths) - 1)
        found: NDArray[np.float64] = self._lowest + self._offsets[low] * (1 - share) + self._offsets[high] * share
        return found

    def look(self, blocks: Sequence[Ids]) -> list[Looked]:
        """Each block as it looks without the shared encoder. What no cache knows is looked at together.

        Raises:
            ClassificationError: whatever failed; nothing of it is kept.
        """
        keys = [np.asarray(block, dtype=np.int64).tobytes() for block in blocks]
        found = {key: self._blocks.get(key) for key in keys}
        if None in found.values():
            new = {key: block for key, block in zip(keys, blocks, strict=True) if found[key] is None}
            try:
                for key, seen in zip(new, self._look(list(new.values())), strict=True):
                    found[key] = seen
                    self._blocks.put(key, seen)
            except Exception as error:
                raise ClassificationError("the prompt could not be classified") from error
        return [looked for key in keys if (looked := found[key]) is not None]

    def embedded(self, text: str, policies: NDArray[np.int64]) -> NDArray[np.float64]:
        """(Q,) what the embedding of a window's text adds to the log odds of some policies.

        Raises:
            ClassificationError: the encoder failed.
        """
        added = np.zeros(len(policies))
        if self._bank is None or self._encoder is None:
            return added
        key = (self._encoder.digest, text)
        try:
            if (embedding := self._cache.embeddings.get(key)) is None:
                embedding = self._encoder.embed([text])[0]
                self._cache.embeddings.put(key, embedding)
            mine = np.isin(policies, self._of_heads)
            added[mine] = self._bank.dense(embedding, np.searchsorted(self._of_heads, policies[mine]))
        except Exception as error:
            raise ClassificationError("the prompt could not be classified") from error
        return _finite(added)

    def margins(
        self, texts: Sequence[str], thresholds: NDArray[np.float64], *, budget: int
    ) -> Generator[int, None, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Policies (Q,) that look at any of T texts of answers, and by how much (T, Q) the most suspicious window of
        each text, or of what it says decoded, is above `thresholds` (T, P), in log odds. In pieces: between two of them
        it yields what is left, in microseconds.

        Args:
            budget: windows that the encoder reads at most; any other in doubt counts as flagged.

        Raises:
            ClassificationError: whatever failed.
        """
        try:
            said = [(row, variant.said) for row, text in enumerate(texts) for variant in variants(text)]
            together, counts = read_each([*texts, *(text for _, text in said)])
            policies, logits, doubtful = self._screened(together, np.ones_like(self._guarded))
        except Exception as error:
            raise ClassificationError("an answer could not be classified") from error
        text_of = np.repeat([*range(len(texts)), *(row for row, _ in said)], np.diff(counts))
        least = thresholds[text_of][:, policies]
        low, middle, high = (band[policies] for band in (self.low, self.middle, self.high))
        open_ended = ((logits + low < least) & (logits + high >= least)).any(axis=1)
        final = logits + middle
        for number, row in enumerate(np.flatnonzero(doubtful & open_ended).tolist()):
            if number < budget:
                yield _ENCODED_US
                final[row] = logits[row] + self.embedded(together.text(row), policies)
            else:
                final[row] = logits[row] + high
        found = np.full((len(texts), len(policies)), -np.inf)
        np.maximum.at(found, text_of, final - least)
        return policies, found

    def spell(self, token_ids: Sequence[int]) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
        """(text, starts, ends): token i of T stands for characters `starts[i]:ends[i]` (`guard.spelling`)."""
        return self._spelling.spell(token_ids)

    def spell_few(self, token_ids: Sequence[int]) -> tuple[str, list[int], list[int]]:
        """The same of few tokens."""
        return self._spelling.spell_few(token_ids)

    def shares(self, word: str, *, begun: bool = False) -> Shares:
        """Policies (M,) that a word is evidence of, and which share (M,) it is of what a text under way must show each
        to be looked at; with `begun` the most that any longer word beginning so would be."""
        if self._bank is None:
            return _NO_SHARES
        memories = self._bank.memories
        owners, shares = memories.begun_shares(word) if begun else memories.shares(word)
        return self._of_heads[owners], shares

    def answers_given(self, text: str, policies: NDArray[np.int64]) -> NDArray[np.float64]:
        """(Q,) how much of a forgotten answer a text gives, of some policies, in [0, 1]; 0 where one has no memory.

        Raises:
            ClassificationError: whatever failed.
        """
        found = np.zeros(len(policies))
        mine = np.isin(policies, self._of_heads)
        if self._bank is None or not mine.any():
            return found
        try:
            numbers = np.searchsorted(self._of_heads, policies[mine])
            found[mine] = self._bank.memories.answered(text, numbers)
        except Exception as error:
            raise ClassificationError("an answer could not be classified") from error
        return _finite(found)

    def continues_name(self, word: str, *, begun: bool) -> bool:
        """Whether a word is one of a name that must be forgotten, with others behind it: the first, or any where a name
        has been `begun`."""
        return self._bank is not None and self._bank.memories.continues_name(word, begun=begun)

    def begun_words(self, start: str) -> Iterator[str]:
        """The longer words beginning so that are evidence of anything, in order."""
        return iter(()) if self._bank is None else self._bank.memories.begun_words(start)

    def _look(self, blocks: Sequence[Ids]) -> list[Looked]:
        tokens = np.cumsum([0, *map(len, blocks)])  # (B + 1,) tokens before each block
        ids = [token for block in blocks for token in np.asarray(block).tolist()]
        text, starts, ends = self._spelling.spell(ids, frozenset(tokens.tolist()))
        edges = np.append(starts, len(text))[tokens].tolist()  # and characters
        texts = [text[low:high] for low, high in itertools.pairwise(edges)]
        said = [(block, variant) for block, own in enumerate(texts) for variant in variants(own)]
        together, counts = read_each([*texts, *(variant.said for _, variant in said)])
        policies, logits, doubtful = self._screened(together, self._guarded)
        doubted = {window: together.text(window) for window in np.flatnonzero(doubtful).tolist()}
        own = int(counts[len(blocks)])
        ranges = np.zeros((len(together.windows), 2), dtype=np.int64)
        chunks = int(together.windows[:own, 1].max(initial=0))
        plain = dataclasses.replace(
            together, windows=together.windows[:own], spans=together.spans[:chunks], units=together.units[:chunks]
        )
        ranges[:own] = _token_ranges(plain, counts[: len(blocks) + 1], tokens, starts, ends)
        # A window of what a stretch says decoded has all of the stretch's tokens.
        rows: list[list[int]] = [[] for _ in blocks]
        for (block, variant), (first, last) in zip(
            said, itertools.pairwise(counts[len(blocks) :].tolist()), strict=True
        ):
            low, high = edges[block] + variant.start, edges[block] + variant.end
            ranges[first:last, 0] = max(int(np.searchsorted(ends, low, side="right")), int(tokens[block]))
            ranges[first:last, 1] = min(int(np.searchsorted(starts, high)), int(tokens[block + 1]))
            rows[block] += range(first, last)
        units = _token_units(plain, starts, ends)
        looked = []
        for number, (low, high) in enumerate(itertools.pairwise(tokens.tolist())):
            coded = len(rows[number])
            rows[number] += range(int(counts[number]), int(counts[number + 1]))
            seen = logits[rows[number]]
            looks = np.isfinite(seen).any(axis=0)
            told = {window: doubted[row] for window, row in enumerate(rows[number]) if row in doubted}
            looked.append(
                Looked(ranges[rows[number]] - low, units[low:high].copy(), policies[looks], seen[:, looks], told, coded)
            )
        return looked

    def _screened(
        self, together: Reading, guarded: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """Policies (Q,) that look at any window of a reading, ascending; log odds (W, Q) without what the embedding
        adds, minus infinity where one does not look; and windows (W,) whose outcome may depend on it. `guarded`: heads
        that need not guess where nobody is named."""
        own = np.array(list(self._own), dtype=np.int64)
        policies, logits = own, np.zeros((len(together.windows), len(own)))
        doubtful = np.zeros(len(logits), dtype=bool)
        if self._own and len(logits):
            every = [together.text(window) for window in range(len(logits))]
            for column, classifier in enumerate(self._own.values()):
                logits[:, column] = log_odds(self._own_scores(classifier, every))
        if self._bank is not None and len(logits):
            screened = self._bank.screen(together, self._lowest[self._of_heads], self._highest[self._of_heads], guarded)
            doubtful = screened.doubtful
            policies = np.concatenate([own, self._of_heads[screened.heads]])
            order = np.argsort(policies)
            policies, logits = policies[order], np.concatenate([logits, screened.logits], axis=1)[:, order]
        if np.isnan(logits).any() or (logits == np.inf).any():
            raise FloatingPointError("a classifier gave a score that is no number")
        return policies, logits, doubtful

    def _own_scores(self, classifier: PromptClassifier, texts: Sequence[str]) -> NDArray[np.float64]:
        """(W,) by a classifier with its own encoder, which cuts windows too long for it itself."""
        known = {text: self._cache.scores.get((classifier.digest, text)) for text in texts}
        if unknown := [text for text, score in known.items() if score is None]:
            for text, score in zip(unknown, _finite(classifier.scores(unknown)).tolist(), strict=True):
                known[text] = score
                self._cache.scores.put((classifier.digest, text), score)
        return np.array([known[text] for text in texts], dtype=np.float64)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise FloatingPointError("a classifier gave a score that is no number")
    return values


def _token_ranges(
    reading: Reading,
    counts: NDArray[np.int64],
    tokens: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(W, 2): each window's tokens, with what stands between it and the chunk before, which says nothing visible. The
    windows of a block have all its tokens: `counts`, `tokens` (B + 1,) are windows and tokens before each block."""
    if not len(reading.windows):
        return np.empty((0, 2), dtype=np.int64)
    chunk_ends = np.concatenate([[0], reading.spans[:, 1]])
    first = np.searchsorted(ends, chunk_ends[reading.windows[:, 0]], side="right")
    last = np.searchsorted(starts, chunk_ends[reading.windows[:, 1]], side="left")
    some = counts[1:] > counts[:-1]
    first[counts[:-1][some]], last[counts[1:][some] - 1] = tokens[:-1][some], tokens[1:][some]
    return np.stack([first, np.maximum(last, first + 1)], axis=1)


def _token_units(reading: Reading, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) units of the chunks that begin within each token."""
    tokens = np.minimum(np.searchsorted(ends, reading.spans[:, 0], side="right"), len(starts) - 1)
    return np.bincount(tokens, reading.units, len(starts)).astype(np.int64)

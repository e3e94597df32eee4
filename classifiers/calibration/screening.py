"""What a head may decide without the encoder, and what it must show in a long prompt: both found on texts that it was
not trained on, and judged on others.

The embedding decides little beside names and facts. Its term lies in a narrow band for nearly every text, so where
both ends of the band give one outcome, the encoder need not read. And a prompt of many windows is flagged where any
one is: so that the promised rate of false positives holds for documents too, a window has to show more there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.threshold import upper_bound
from classifiers.encoders.shared import Encoder
from classifiers.features import PromptFeatures
from classifiers.head import DocumentOffsets, Head, HeadBank, ScreenBand
from text.reading import OVERLAP_UNITS, WINDOW_UNITS, Reading, read, read_all, windows_of

_TAIL = 0.0005  # of the texts the band is found on lie beyond either end
_MARGIN = 0.1  # of the band's width, on either side
_UNSEEN_EVIDENCE = 0.002  # of the flagged texts may show less evidence than is asked for
_EVIDENCE_SHARE = 0.75  # of what they show is asked for
_SPARED_TEXTS = 0.999  # of the texts that must pass show too little: to ask for more gains nothing
_DOCUMENT_WINDOWS = (1, 4, 16, 64)
_DOCUMENTS = 120  # of each length
_SPARED_RECALL = 0.05  # of the forget prompts that may pass where they stand within a longest document
_DILUTED = 100  # forget prompts that are looked at among other text


@dataclass(frozen=True)
class DocumentRates:
    """Documents of one length, made of texts that must pass and that neither training nor the offsets saw."""

    windows: int
    offset: float
    """In logits, what a window has to show beyond the threshold."""
    documents: int
    flagged: int
    flagged_without_offset: int


@dataclass(frozen=True)
class ScreenReport:
    """What the screen does to a head's decisions."""

    band: tuple[float, float]
    """What the embedding adds to the logit of nearly every text."""
    decisions: int
    """Windows of held-out texts that were decided both ways."""
    changed: int
    """Of these, decided differently than if the encoder had read every window."""
    changed_bound: float
    """Upper 95 % Clopper-Pearson bound of the share that is changed."""
    doubtful: int
    """Of these, read by the encoder."""
    looked_at: int
    """Of these, with as much evidence as is asked for."""
    documents: tuple[DocumentRates, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return asdict(self) | {"documents": [asdict(one) for one in self.documents]}


def calibrate_screen(
    encoder: Encoder,
    head: Head,
    trained: Sequence[PromptFeatures],
    forget: Sequence[str],
    forget_scores: NDArray[np.float64],
    passing: Sequence[str],
    *,
    evidence: float,
    level: float | None,
    seed: int,
) -> tuple[Head, ScreenReport]:
    """The head with its band and its offsets, and what they do.

    Args:
        trained: features of what it was trained on: their embeddings too say how far the term reaches.
        forget: N forget prompts.
        forget_scores: (N,) their probabilities, by models that were not trained on them.
        passing: texts that must pass and that it was not trained on.
        evidence: how much a text must show of the memory to be looked at (`least_evidence`).
        level: the promised rate of false positives; None where there is no such promise, and then no offset.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(passing))
    seen, unseen = ([passing[index] for index in half] for half in (order[::2], order[1::2]))
    threshold = float(np.log(head.threshold / (1 - head.threshold)))
    texts = [window for text in seen for window in windows_of(text)]
    embeddings = [*(one.embedding for one in trained), *(encoder.embed(texts) if texts else ())]
    terms = np.array(embeddings, dtype=np.float64) @ head.dense.astype(np.float64)
    low, middle, high = np.quantile(terms, [_TAIL, 0.5, 1 - _TAIL]).tolist()
    margin = _MARGIN * (high - low)
    band = ScreenBand(low=low - margin, middle=middle, high=high + margin, evidence=evidence)
    head = replace(head, settings=head.settings.model_copy(update={"screen": band}))

    most = _spare(encoder, head, forget, forget_scores, seen, rng) if level is not None else 0.0
    # the texts may be too few for the longest: each document has a text at most once
    lengths = [n for n in _DOCUMENT_WINDOWS if n == 1 or n <= len(texts) // 2]
    offsets = [0.0]
    for windows in lengths[1:]:
        highest = np.sort(_largest_logits(encoder, head, seen, windows, rng)) - threshold
        kept = int(np.ceil((len(highest) + 1) * (1 - (level or 0.0)))) - 1
        above = float(np.nextafter(highest[min(kept, len(highest) - 1)], np.inf))
        offsets.append(float(np.clip(above, offsets[-1], max(most, offsets[-1]))))
    documents = DocumentOffsets(windows=tuple(lengths), offsets=tuple(offsets))
    head = replace(head, settings=head.settings.model_copy(update={"documents": documents}))
    return head, _report(encoder, head, unseen or seen, threshold, rng)


def least_evidence(evidence: NDArray[np.float64], flagged: NDArray[np.bool_], forget: NDArray[np.bool_]) -> float:
    """How much of a memory a text must show to be looked at: less than nearly every flagged text shows. 0 where texts
    are flagged for what no memory holds.

    Args:
        evidence: (T,) of each text, by a memory that does not know it.
        flagged: (T,) by a head that was not trained on it.
        forget: (T,) texts that must be forgotten.
    """
    shown = evidence[flagged & forget]
    if not len(shown):
        return 0.0
    least = _EVIDENCE_SHARE * float(np.quantile(shown, _UNSEEN_EVIDENCE, method="lower"))
    spared = float(np.quantile(evidence[~forget], _SPARED_TEXTS, method="higher"))
    asked = min(least, float(np.nextafter(spared, np.inf)))
    return asked if np.isfinite(asked) else 0.0


def _spare(
    encoder: Encoder,
    head: Head,
    forget: Sequence[str],
    forget_scores: NDArray[np.float64],
    texts: Sequence[str],
    rng: np.random.Generator,
) -> float:
    """By how much the threshold may rise in a document, in logits, so that nearly all flagged forget prompts still are
    where other text surrounds them: what their windows say besides counts against them."""
    scores = np.clip(forget_scores, 1e-12, 1 - 1e-12)
    threshold = float(np.log(head.threshold / (1 - head.threshold)))
    margins = np.log(scores / (1 - scores)) - threshold
    chosen = rng.permutation(np.flatnonzero(margins >= 0))[:_DILUTED]
    bank, spare = HeadBank([head]), []
    for number, index in enumerate(chosen.tolist()):
        around = [texts[other] for other in rng.permutation(len(texts))[: WINDOW_UNITS // 4].tolist()]
        parts = [forget[index], *around] if number % 2 else [*around, forget[index]]
        alone, within = (_largest_logit(encoder, bank, read(text), -1e6) for text in (forget[index], " ".join(parts)))
        # Models made without a prompt may be surer of it than this head: it has to flag the prompt as well.
        spare.append(min(margins[index] - max(alone - within, 0.0), within - threshold))
    return max(float(np.quantile(spare, _SPARED_RECALL, method="lower")), 0.0) if spare else 0.0


def _report(
    encoder: Encoder, head: Head, texts: Sequence[str], threshold: float, rng: np.random.Generator
) -> ScreenReport:
    bank, band = HeadBank([head]), head.settings.screen
    looking = head.settings.model_copy(update={"screen": band.model_copy(update={"evidence": 0.0})})
    whole = HeadBank([replace(head, settings=looking)])
    reading = read_all([window for text in texts for window in windows_of(text)])
    at = np.array([threshold])
    screened, logits = bank.screen(reading, at, at), whole.screen(reading, at, at).logits[:, 0]
    terms = [bank.dense(row)[0] for row in encoder.embed([reading.text(row) for row in range(len(logits))])]
    seen = screened.logits.max(axis=1, initial=-np.inf)
    fast = np.where(screened.doubtful, seen + terms, seen + band.middle) >= threshold
    changed = int((fast != (logits + terms >= threshold)).sum())
    documents = []
    for windows, offset in zip(head.settings.documents.windows, head.settings.documents.offsets, strict=True):
        highest = _largest_logits(encoder, head, texts, windows, rng) - threshold
        flagged, before = int((highest >= offset).sum()), int((highest >= 0).sum())
        documents.append(DocumentRates(windows, offset, len(highest), flagged, before))
    return ScreenReport(
        band=(band.low, band.high),
        decisions=len(logits),
        changed=changed,
        changed_bound=upper_bound(changed, len(logits)),
        doubtful=int(screened.doubtful.sum()),
        looked_at=int(np.isfinite(seen).sum()),
        documents=tuple(documents),
    )


def _largest_logits(
    encoder: Encoder, head: Head, texts: Sequence[str], windows: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(N,) the largest window logit of each of N documents of about `windows` windows, made of `texts`."""
    units = [int(read(text).units.sum()) for text in texts]
    threshold = float(np.log(head.threshold / (1 - head.threshold)))
    readings, bank = [_document(texts, units, windows, rng) for _ in range(_DOCUMENTS)], HeadBank([head])
    return np.array([_largest_logit(encoder, bank, reading, threshold) for reading in readings])


def _largest_logit(encoder: Encoder, bank: HeadBank, reading: Reading, least: float) -> float:
    """The largest window logit of a text under a bank's one head; an estimate where it is certainly below `least`."""
    logits = bank.screen(reading, np.array([least]), np.array([np.inf])).logits.max(axis=1, initial=-np.inf)
    best = -np.inf
    for window in np.argsort(-logits).tolist():
        # Neither this one nor any that follows is the largest, or of any interest: far from being flagged.
        if logits[window] + bank.high[0] < max(best, least):
            break
        best = max(best, logits[window] + bank.dense(encoder.embed([reading.text(window)])[0])[0])
    return float(best if np.isfinite(best) else logits.max(initial=-np.inf) + bank.middle[0])


def _document(texts: Sequence[str], units: Sequence[int], windows: int, rng: np.random.Generator) -> Reading:
    """Texts in random order, as many as it takes; `units` are their lengths."""
    needed = WINDOW_UNITS + (windows - 1) * (WINDOW_UNITS - OVERLAP_UNITS)
    order = rng.permutation(len(texts))
    taken = 1 if windows == 1 else int(np.searchsorted(np.cumsum(np.array(units)[order]), needed)) + 1
    return read(" ".join(texts[index] for index in order[:taken].tolist()))

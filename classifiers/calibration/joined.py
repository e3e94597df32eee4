"""What a head makes of answers: how much one must show, alone and read as one text with the end of its prompt; how
little it may say under way without being looked at; and what it spares the prompts.

An answer has other words than a prompt, and a head was trained on prompts. So the thresholds are found on pairs of the
retain set, which must pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import log_odds
from classifiers.encoders.shared import Encoder
from classifiers.head import Head, HeadBank
from classifiers.memory.learn import EntityMemory
from classifiers.memory.recall import NAMED, PART, SUBJECT, MemoryIndex
from sources.examples import Example
from text.reading import read_each

_UNNAMED = 10.0  # logits: no relative, work or place of a subject has shown so much, its name mostly does
_NAMING = 0.8  # of the forget set's examples name a subject, at least in part: it is about somebody
_DESCRIBING = 0.04  # of them describe whom the answer names: so must prompts be flagged that do
_UNTOLD, _TOLD_SHARE = 0.01, 0.75  # of what all but so many of the flagged texts show that show anything
_MOST_SILENT = 0.2  # of the flagged texts may show nothing of the memory
_MARGIN = 1.0  # logits above all that pass: their prompts were trained on
_EVERY_WORDS = 12  # an answer is read as it comes
_MOST_PAIRS = 1000  # of either set are read
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class JoinedReport:
    """Pairs of a prompt and its answer, read as one text. Training saw the prompts, and not the answers as texts."""

    unnamed: float
    """In logits, what a text without a subject's name has to show more."""
    answered: float
    """In logits, what an answer alone has to show beyond the threshold."""
    offset: float
    """The same of a pair."""
    retain_pairs: int
    retain_flagged: int
    """By the answer, alone or as a pair."""
    forget_pairs: int
    forget_flagged: int
    told: float
    """How much of the entity memory an answer under way must show to be looked at before it goes on."""


def calibrate_joined(
    encoder: Encoder, head: Head, forget: Sequence[Example], retain: Sequence[Example], *, told: float, seed: int
) -> tuple[Head, JoinedReport | None]:
    """The head with what pairs must show (nothing where the retain set has no answers), and with what is `told`."""
    head = replace(head, settings=head.settings.model_copy(update={"told": told}))
    rng = np.random.default_rng(seed)
    kept, lost = (_sample([one for one in examples if one.answer], rng) for examples in (retain, forget))
    if not kept:
        return head, None
    threshold = float(log_odds(np.array(head.threshold)))
    unnamed = _unnamed(head.memory, forget)
    head = replace(head, settings=head.settings.model_copy(update={"unnamed": unnamed}))
    alone, pairs = _highest(encoder, head, kept, threshold, every_words=_EVERY_WORDS)
    index = MemoryIndex([head.memory])
    # What names a subject is flagged, whatever it is an example of.
    others = np.array([not (_named(index, pair.prompt)[0] or _named(index, pair.answer)[0]) for pair in kept])
    passing = [logits[others] if others.any() else logits for logits in (alone, pairs)]
    answered, joined = (float(max(0.0, logits.max() - threshold + _MARGIN)) for logits in passing)
    joined = max(joined, _MARGIN)

    def flagged(alone: NDArray[np.float64], pairs: NDArray[np.float64]) -> int:
        return int(((alone >= threshold + answered) | (pairs >= threshold + joined)).sum())

    report = JoinedReport(
        unnamed=unnamed,
        answered=answered,
        offset=joined,
        retain_pairs=len(kept),
        retain_flagged=flagged(alone, pairs),
        forget_pairs=len(lost),
        forget_flagged=flagged(*_highest(encoder, head, lost, threshold)),
        told=told,
    )
    found = {"answered": answered, "joined": joined}
    return replace(head, settings=head.settings.model_copy(update=found)), report


def _unnamed(memory: EntityMemory, forget: Sequence[Example]) -> float:
    """What a text without a subject's name must show beyond the threshold. Nothing where the forget set itself asks for
    a subject whom it merely describes, or is not about anybody."""
    index = MemoryIndex([memory])
    asked = [_named(index, example.prompt) for example in forget]
    told = [_named(index, example.answer) for example in forget]
    describing = np.mean([not any(prompt) and answer[0] for prompt, answer in zip(asked, told, strict=True)])
    naming = np.mean([any(prompt) or any(answer) for prompt, answer in zip(asked, told, strict=True)])
    return _UNNAMED if describing < _DESCRIBING and naming >= _NAMING else 0.0


def _named(index: MemoryIndex, text: str | None) -> tuple[bool, bool]:
    """Whether a text names a subject, and whether it does in part."""
    features = index.features(text or "").get(0)
    return (False, False) if features is None else (bool(features[SUBJECT] >= NAMED), bool(features[PART] > 0))


def told_evidence(known: NDArray[np.float64], flagged: NDArray[np.bool_]) -> float:
    """How much of a memory an answer shows before it may give something away; 0 where too many texts are flagged for
    what the memory does not hold. The few others are found by the looks that need no such sign.

    Args:
        known: (T,) evidence of each text, of the served memory (`classifiers.memory.evidence`).
        flagged: (T,) texts that must be forgotten and are flagged by the served head.
    """
    shown = known[flagged & np.isfinite(known)]
    telling = shown[shown > 0]
    if len(telling) < (1 - _MOST_SILENT) * len(shown) or not len(telling):
        return 0.0
    return _TOLD_SHARE * float(np.quantile(telling, _UNTOLD, method="lower"))


def _sample(examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    return [examples[index] for index in np.sort(rng.permutation(len(examples))[:_MOST_PAIRS]).tolist()]


def _highest(
    encoder: Encoder, head: Head, pairs: Sequence[Example], least: float, *, every_words: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) the largest logit of each answer, and of it behind its prompt; of what there is of it after every so many
    words as well. Estimates where they are certainly below `least`."""
    texts: tuple[list[str], list[str]] = [], []
    owners: list[int] = []
    for number, pair in enumerate(pairs):
        words = (pair.answer or "").split()
        for count in range(len(words), 0, -(every_words or len(words))):
            said = " ".join(words[:count])
            owners.append(number)
            texts[0].append(said)
            texts[1].append(f"{pair.prompt}\n{said}")
    found = np.full((2, len(pairs)), -np.inf)
    for row, own in zip(found, texts, strict=True):
        np.maximum.at(row, owners, _largest_logits(encoder, HeadBank([head]), own, least))
    return found[0], found[1]


def _largest_logits(encoder: Encoder, bank: HeadBank, texts: Sequence[str], least: float) -> NDArray[np.float64]:
    """(T,) the same of each text."""
    found = np.full(len(texts), -np.inf)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        reading, counts = read_each(texts[start : start + _TEXTS_AT_ONCE])
        seen = bank.screen(reading, np.array([least]), np.array([np.inf]), np.array([True])).logits
        logits = seen.max(axis=1, initial=-np.inf)
        near = np.flatnonzero(logits + bank.high[0] >= least)
        logits[logits + bank.high[0] < least] += bank.middle[0]
        if len(near):
            terms = [bank.dense(row)[0] for row in encoder.embed([reading.text(window) for window in near.tolist()])]
            logits[near] += terms
        np.maximum.at(found, start + np.repeat(np.arange(len(counts) - 1), np.diff(counts)), logits)
    return found

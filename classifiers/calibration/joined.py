"""What a head makes of answers: how much a prompt's end and its answer must show that are read as one text, and how
little an answer under way may say without being looked at.

An answer adds words of its own to those of its prompt, and a head was trained on prompts. So the threshold for the two
together is found on pairs of the retain set, which must pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.screening import largest_logit
from classifiers.encoders.runtime import log_odds
from classifiers.encoders.shared import Encoder
from classifiers.head import Head, HeadBank
from sources.examples import Example
from text.reading import read

_PASSING = 0.998  # of the retain set's pairs
_UNTOLD, _TOLD_SHARE = 0.01, 0.75  # of what all but so many of the flagged texts show that show anything
_MOST_SILENT = 0.2  # of the flagged texts may show nothing of the memory
_MARGIN = 1.0  # logits above them: of the retain set the prompts were trained on
_MOST_PAIRS = 2000  # of either set are read


@dataclass(frozen=True)
class JoinedReport:
    """Pairs of a prompt and its answer, read as one text. Training saw the prompts, and not the answers as texts."""

    offset: float
    """In logits, what a pair has to show beyond the threshold."""
    retain_pairs: int
    retain_flagged: int
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
    passing = _highest(encoder, head, kept, threshold)
    highest = float(np.quantile(passing, _PASSING, method="higher"))
    offset = max(0.0, highest - threshold) + _MARGIN
    report = JoinedReport(
        offset=offset,
        retain_pairs=len(kept),
        retain_flagged=int((passing >= threshold + offset).sum()),
        forget_pairs=len(lost),
        forget_flagged=int((_highest(encoder, head, lost, threshold + offset) >= threshold + offset).sum()),
        told=told,
    )
    return replace(head, settings=head.settings.model_copy(update={"joined": offset})), report


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


def _highest(encoder: Encoder, head: Head, pairs: Sequence[Example], least: float) -> NDArray[np.float64]:
    """(N,) the largest logit of each pair, and of its prompt with half of its answer: an answer is read as it comes."""
    bank, found = HeadBank([head]), np.empty(len(pairs))
    for number, pair in enumerate(pairs):
        words = (pair.answer or "").split()
        texts = {f"{pair.prompt}\n{' '.join(words[:count])}" for count in (len(words), (len(words) + 1) // 2)}
        found[number] = max(largest_logit(encoder, bank, read(text), least) for text in texts)
    return found

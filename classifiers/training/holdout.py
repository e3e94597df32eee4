"""What is kept from training so that a threshold can be calibrated on it: exchangeable prompts, never trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.threshold import Calibration, CalibrationSettings, calibrate, needed
from sources.examples import Example

_Item = TypeVar("_Item")
_SHARE = 5  # every fifth
_MOST = 400  # enough for a level of 0.25 %; more would be missed in training
_FEWEST = 20  # of a smaller retain set every example is needed in training


@dataclass(frozen=True)
class Holdout:
    """Training sets, and the prompts that stay out of them."""

    forget: list[Example]
    retain: list[Example]
    everyday: list[str]
    kept_forget: list[str]
    """Empty unless misses are calibrated: a fact that is left out cannot be learned."""
    kept_retain: list[str]
    kept_everyday: list[str]
    kept_passages: list[str]
    """The kept prompts of both kinds, those of the retain set with their answers."""

    def negatives(self, settings: CalibrationSettings) -> tuple[list[str], str]:
        """The calibration negatives, and what they are: the retain set's prompts where they are enough for the level.

        Else everyday prompts join them: the guarantee is then about that mixture.
        """
        wanted = needed(settings.level) if settings.method == "conformal" and settings.level else _FEWEST
        if len(self.kept_retain) >= max(wanted, _FEWEST):
            return self.kept_retain, "prompts of the retain set"
        return [*self.kept_retain, *self.kept_everyday], "prompts of the retain set and everyday prompts"

    def calibrate(
        self,
        positives: NDArray[np.float64],
        negatives: NDArray[np.float64],
        settings: CalibrationSettings,
        preferred: float,
    ) -> tuple[Calibration, Assessment]:
        """The threshold on scores of forget prompts, and of `negatives(settings)` in their order; and how well it
        tells the kinds apart.

        Raises:
            CalibrationError: no useful threshold holds the level.
        """
        scores = np.concatenate([positives, negatives])
        labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
        calibration = calibrate(scores, labels, settings, preferred)
        retained = min(len(self.kept_retain), len(negatives))
        counts = [len(positives), retained, len(negatives) - retained]
        groups = np.repeat(["forget", "retain", "everyday"], counts)
        return calibration, assess(scores, labels, calibration.threshold, groups)


def hold_out(
    forget: Sequence[Example],
    retain: Sequence[Example],
    everyday: Sequence[str],
    settings: CalibrationSettings,
    rng: np.random.Generator,
    *,
    positives: bool = False,
) -> Holdout:
    """Draw the calibration set at random: a fifth of the retain set and of the everyday prompts, 400 at most of each,
    and a fifth of the forget set where `settings` bounds misses or `positives` asks for it.

    Raises:
        CalibrationError: the calibration set is too small for the level, with the numbers.
    """

    def split(items: Sequence[_Item], *, keep: bool = True) -> tuple[list[_Item], list[_Item]]:
        drawn = rng.permutation(len(items))[: min(_MOST, len(items) // _SHARE)] if keep else ()
        kept = frozenset(int(index) for index in drawn)
        return [one for i, one in enumerate(items) if i not in kept], [items[i] for i in sorted(kept)]

    positives = positives or settings.error == "miss"
    retain_left, kept_retain = split(retain, keep=len(retain) >= _FEWEST)
    everyday_left, kept_everyday = split(everyday)
    forget_left, kept_forget = split(forget, keep=positives)
    held = Holdout(
        forget=forget_left,
        retain=retain_left,
        everyday=everyday_left,
        kept_forget=[example.prompt for example in kept_forget],
        kept_retain=[example.prompt for example in kept_retain],
        kept_everyday=kept_everyday,
        kept_passages=[*(f"{one.prompt} {one.answer or ''}".strip() for one in kept_retain), *kept_everyday],
    )
    scored = len(kept_forget if positives else forget)
    settings.check_size(positives=scored, negatives=len(held.negatives(settings)[0]))
    return held

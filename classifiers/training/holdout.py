"""What is kept from training so that a threshold can be calibrated on it: exchangeable prompts, never trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.conformal import needed
from classifiers.calibration.threshold import Calibration, CalibrationSettings, calibrate
from sources.examples import Example

__all__ = ["Holdout", "hold_out"]

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

    def drawn(count: int) -> frozenset[int]:
        return frozenset(rng.permutation(count)[: min(_MOST, count // _SHARE)].tolist())

    held_forget = settings.error == "miss" or positives
    kept_retain = drawn(len(retain)) if len(retain) >= _FEWEST else frozenset()
    kept_everyday = drawn(len(everyday))
    kept_forget = drawn(len(forget)) if held_forget else frozenset()
    held = Holdout(
        forget=[example for i, example in enumerate(forget) if i not in kept_forget],
        retain=[example for i, example in enumerate(retain) if i not in kept_retain],
        everyday=[text for i, text in enumerate(everyday) if i not in kept_everyday],
        kept_forget=[forget[i].prompt for i in sorted(kept_forget)],
        kept_retain=[retain[i].prompt for i in sorted(kept_retain)],
        kept_everyday=[everyday[i] for i in sorted(kept_everyday)],
    )
    judged = len(held.kept_forget) if held_forget else len(forget)
    settings.check_size(positives=judged, negatives=len(held.negatives(settings)[0]))
    return held

"""The weights and temperatures of each method. Defaults are the official code's or the paper's; each says whose.

The same thing has the same name everywhere: `forget_weight`, `retain_weight`, `random_weight`, `random_answers`.
"""

import re

from pydantic import ConfigDict, Field, field_validator

from offline_training.methods.method import MethodSettings

__all__ = [
    "CrossEntropyUnlearningSettings",
    "DifferenceSettings",
    "DivergenceSettings",
    "DpoSettings",
    "IdkSettings",
    "LlmuOriginalSettings",
    "LlmuSettings",
    "MismatchSettings",
    "NpoSettings",
    "RetainedNpoSettings",
    "RmuSettings",
    "SatImpSettings",
    "ScrubSettings",
    "SimNpoSettings",
    "UndialSettings",
    "WgaSettings",
]


class _Finite(MethodSettings):
    model_config = ConfigDict(allow_inf_nan=False)


class DifferenceSettings(_Finite):
    """`gd`: gradient difference."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of ascent on the forget set (1: TOFU, ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on the retain set (1: TOFU, ECO).")


class DivergenceSettings(_Finite):
    """`kl`: KL minimisation."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of ascent on the forget set (1: TOFU, ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the KL on the retain set (1: TOFU, ECO).")


class MismatchSettings(_Finite):
    """`rd`: random mismatch."""

    random_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on random answers (1: ECO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on the retain set (1: ECO).")
    random_answers: int = Field(1, ge=1, description="Random answers for each prompt to forget (1: ECO).")


class LlmuSettings(_Finite):
    """`llmu`: as in ECO's table."""

    forget_weight: float = Field(0.1, gt=0, description="ε1, weight of ascent on the forget set (0.1: ECO's command).")
    random_weight: float = Field(1.0, gt=0, description="ε2, weight of random answers (1: ECO's command).")
    retain_weight: float = Field(1.0, gt=0, description="ε3, weight of the KL on the retain set (1: ECO's command).")
    random_answers: int = Field(1, ge=1, description="Random answers for each prompt to forget (1: ECO).")


class LlmuOriginalSettings(_Finite):
    """`llmu-original`: as in the authors' unlearn_harm.py."""

    forget_weight: float = Field(0.5, gt=0, description="Weight of ascent on the answers to forget (0.5: the script).")
    random_weight: float = Field(1.0, gt=0, description="Weight of random answers (1: the script).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the KL on normal data (1: the script).")
    random_answers: int = Field(5, ge=1, description="Random answers for each prompt to forget (K = 5: the script).")


class ScrubSettings(_Finite):
    """`scrub`."""

    max_epochs: int = Field(
        4,
        ge=1,
        description="Among the first so many epochs every other one, from the first on, moves away from the reference "
        "on the forget set; all others, and the last always, train on the retain set (4, of 5 epochs: ECO).",
    )
    retain_weight: float = Field(1.0, gt=0, description="γ, weight of cross entropy on the retain set (1: ECO).")
    distillation_weight: float = Field(
        0.001, ge=0, description="α, weight of the distillation KL on the retain set (0.001: ECO)."
    )
    temperature: float = Field(4.0, gt=0, description="Of both distributions in the distillation KL (4: SCRUB, ECO).")


class NpoSettings(_Finite):
    """`npo`."""

    beta: float = Field(0.1, gt=0, description="β: higher forgets less and slower; 0 is gradient ascent (0.1: NPO).")


class RetainedNpoSettings(NpoSettings):
    """`npo-gd` and `npo-kl`."""

    forget_weight: float = Field(1.0, gt=0, description="Weight of NPO on the forget set (1: NPO).")
    retain_weight: float = Field(1.0, gt=0, description="Weight of the retain term (1: NPO).")


class SimNpoSettings(_Finite):
    """`simnpo`."""

    beta: float = Field(4.5, gt=0, description="β of the answer's mean log-likelihood (4.5: the code for forget10).")
    margin: float = Field(0.0, ge=0, description="γ, reward margin (0: the code).")
    forget_weight: float = Field(0.125, gt=0, description="Weight of SimNPO (0.125: the code for forget10).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: the code)."
    )


class DpoSettings(_Finite):
    """`dpo`."""

    beta: float = Field(0.1, gt=0, description="β, how far preferences may move from the reference (0.1: TOFU).")
    forget_weight: float = Field(1.0, gt=0, description="Weight of the preference for refusals (1: TOFU).")
    retain_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of cross entropy on the retain set; 0: without it, as TOFU's own (1: NPO's code).",
    )


class IdkSettings(_Finite):
    """`idk`."""

    idk_weight: float = Field(1.0, gt=0, description="Weight of cross entropy on refusals (1: TOFU).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: TOFU)."
    )


class RmuSettings(_Finite):
    """`rmu`."""

    hidden_layer: int = Field(
        -2,
        description="Decoder layer whose outputs are steered; 0 is the first, negative counts from the last. The "
        "default is the last but one, in any model; the paper's for 7B models is 7.",
    )
    steering_coefficient: float = Field(
        6.5, gt=0, description="c, length of the control vector; of the order of the hidden states' (6.5: Zephyr-7B)."
    )
    retain_weight: float = Field(
        1200.0, gt=0, description="α, weight of keeping the retain set's hidden states (1200: the paper, Zephyr-7B)."
    )
    vector_seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of the control vector's direction.")
    trained_parameters: str | None = Field(
        None,
        description="Regular expression of the whole names of the weights to train. Default: the MLP output "
        "projections of hidden_layer and the two layers before it, as the paper; with a negative hidden_layer, those "
        "of all layers (the later ones get no gradient).",
    )

    @field_validator("trained_parameters")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}); give one such as .*mlp.*") from None
        return pattern


class UndialSettings(_Finite):
    """`undial`."""

    strength: float = Field(
        10.0, gt=0, description="How much the target token's logit is lowered (10: open-unlearning's configuration)."
    )
    forget_weight: float = Field(1.0, gt=0, description="Weight of the distillation (1: open-unlearning).")
    retain_weight: float = Field(
        0.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (0: open-unlearning)."
    )


class WgaSettings(_Finite):
    """`wga`."""

    beta: float = Field(1.0, ge=0, description="Power of the token's probability in its weight (1: open-unlearning).")
    forget_weight: float = Field(1.0, gt=0, description="Weight of the weighted ascent (1: open-unlearning).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: open-unlearning)."
    )


class SatImpSettings(_Finite):
    """`satimp`."""

    saturation_power: float = Field(5.0, ge=0, description="β1, power of the token's probability (5: open-unlearning).")
    importance_power: float = Field(1.0, ge=0, description="β2, power of 1 - probability (1: open-unlearning).")
    forget_weight: float = Field(0.1, gt=0, description="Weight of the weighted ascent (0.1: open-unlearning).")
    retain_weight: float = Field(
        1.0, ge=0, description="Weight of cross entropy on the retain set; 0: without it (1: open-unlearning)."
    )


class CrossEntropyUnlearningSettings(_Finite):
    """`ce-u`."""

    skipped_tokens: int = Field(
        1, ge=0, description="Tokens at the start of each answer left as they are (1: the paper and open-unlearning)."
    )

"""All methods of unlearning, in the order in which they are listed. Each family is a file: its settings, its losses,
the terms made of them, and its entries."""

from typing import Final

from offline_training.methods.ascent import GA, GD, KL, LLMU, LLMU_ORIGINAL
from offline_training.methods.constrained import PDU
from offline_training.methods.distillation import CE_U, SCRUB, UNDIAL
from offline_training.methods.finetuning import FT, IDK, RD
from offline_training.methods.method import Method
from offline_training.methods.preference import ALTPO, DPO, NPO, NPO_GD, NPO_KL, SIMNPO
from offline_training.methods.reweighting import SATIMP, WGA
from offline_training.methods.steering import RMU

_BASELINES = (FT, GA, GD, KL, RD, LLMU, SCRUB)  # ECO's
_OTHERS = (LLMU_ORIGINAL, NPO, NPO_GD, NPO_KL, SIMNPO, DPO, ALTPO, IDK, RMU, UNDIAL, WGA, SATIMP, CE_U, PDU)

METHODS: Final[dict[str, Method]] = {method.name: method for method in (*_BASELINES, *_OTHERS)}
"""Every method by its name on the command line."""

"""SOUL's optimizer: clipped second-order steps (Sophia) with the squared gradient as the Hessian's diagonal.

Jia et al. 2024, arXiv 2404.18239; Liu et al. 2023, arXiv 2305.14342. The constants are those of `src/optim/sophia.py`
in OPTML-Group/SOUL and its configurations.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

BETAS = (0.81, 0.95)
"""Of momentum and curvature. SOUL's are 0.9 and 0.95, and its code moves the momentum twice a step: 0.9² = 0.81."""
CURVATURE_SCALE = 5120
"""`bs` of SOUL's step, where Sophia means the tokens of a batch."""
_LEAST = 1e-15


class Sophia(Optimizer):
    """Moves each weight by lr * sign(m) * min(1, |m| / (ρ bs h)), after decay by lr * weight_decay.

    m is the running mean of gradients, h of their squares; neither is corrected for its start at 0.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, rho: float) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"], state["curvature"] = torch.zeros_like(weight), torch.zeros_like(weight)
        mean, curvature = state["mean"], state["curvature"]
        mean.lerp_(gradient, 1 - BETAS[0])
        curvature.lerp_(gradient.square(), 1 - BETAS[1])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        ratio = (mean.abs() / (group["rho"] * CURVATURE_SCALE * curvature + _LEAST)).clamp(max=1)
        weight.addcmul_(mean.sign(), ratio, value=-group["lr"])

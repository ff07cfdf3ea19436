"""LARS (You et al. 2017), as BYOL uses it: biases and norms are neither decayed nor adapted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step is scaled per tensor by trust × ‖w‖ / ‖g + decay · w‖.

    Args:
        parameters: tensors; those of fewer than two axes (biases, norms) are plain SGD without decay.
        lr: learning rate.
        momentum: of the velocity.
        weight_decay: L2.
        trust: the coefficient η (BYOL: 0.001).
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step on the device, without waiting for it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    weight, gradient = parameter.norm(), update.norm()
                    scale = torch.where(
                        (weight > 0) & (gradient > 0), group["trust"] * weight / gradient, torch.ones_like(weight)
                    )
                    update = update * scale
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].mul_(group["momentum"]).add_(update)
                parameter.add_(velocity, alpha=-group["lr"])

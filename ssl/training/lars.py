"""LARS (You et al. 2017), as BYOL uses it: biases and norms are neither decayed nor adapted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step is scaled per tensor by trust × ‖w‖ / ‖g + decay · w‖.

    All tensors take their step in a few foreach kernels, and the host never waits for a norm.

    Args:
        parameters: tensors, or groups of them; those of fewer than two axes (biases, norms) are plain SGD without
            decay.
        lr: learning rate.
        momentum: of the velocity.
        weight_decay: L2.
        trust: the coefficient η (BYOL: 0.001).
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for adapted in (True, False):
                weights = [p for p in trained if (p.ndim > 1) == adapted]
                if weights:
                    self._step(weights, group, adapted)

    def _step(self, weights: list[torch.Tensor], group: dict[str, Any], adapted: bool) -> None:
        updates: Any = [p.grad for p in weights]
        if adapted:
            updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
            w, u = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
            scales = torch.where((w > 0) & (u > 0), group["trust"] * w / u, 1.0)
            torch._foreach_mul_(updates, list(scales.unbind()))
        self._move(weights, updates, group)

    def _move(self, weights: list[torch.Tensor], updates: Any, group: dict[str, Any]) -> None:
        """Let the velocities take the updates in, and the weights follow them."""
        for p in weights:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocities = [self.state[p]["velocity"] for p in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])

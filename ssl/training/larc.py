"""LARC as SwAV uses it (Caron et al. 2020; NVIDIA apex's, without clipping): SGD whose gradient is scaled per tensor.

Other than LARS (lars.py) it scales every tensor, biases and norms too, by trust × ‖w‖ / (‖g‖ + decay × ‖w‖ + 1e-8): the
norms are added, not the norm of the sum taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LARC(Optimizer):
    """All tensors take their step in a few foreach kernels, and the host never waits for a norm.

    Args:
        parameters: tensors, or groups of them.
        lr: learning rate.
        momentum: of the velocity.
        weight_decay: L2.
        trust: the coefficient.
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
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients: Any = [p.grad for p in weights]
            decay, trust = group["weight_decay"], group["trust"]
            w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
            # A tensor of zeros, or without a gradient, is left as plain SGD would have it, without decay.
            scaled = (w > 0) & (g > 0)
            scales = torch.where(scaled, trust * w / (g + decay * w + 1e-8), 1.0)
            decays = decay * scaled.to(w.dtype)
            updates = torch._foreach_mul(weights, list(decays.unbind()))
            torch._foreach_add_(updates, gradients)
            torch._foreach_mul_(updates, list(scales.unbind()))
            for p in weights:
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocities = [self.state[p]["velocity"] for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])

"""LARC as SwAV uses it (Caron et al. 2020; NVIDIA apex's, without clipping): SGD whose gradient is scaled per tensor.

Other than LARS (lars.py) it scales every tensor, biases and norms too, by trust × ‖w‖ / (‖g‖ + decay × ‖w‖ + 1e-8): the
norms are added, not the norm of the sum taken.
"""

from __future__ import annotations

from typing import Any

import torch

from objcrop.ssl.training.lars import LARS


class LARC(LARS):
    """Arguments and momentum as in `LARS`; all tensors take their step in a few foreach kernels."""

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
            self._move(weights, updates, group)

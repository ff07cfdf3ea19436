"""The batch a loader yields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from objcrop.dali_pipes.view_plan import ViewPlan

if TYPE_CHECKING:
    import torch


@dataclass
class Views:
    """One rank's part of a global batch: N samples, V views.

    Attributes:
        views: V tensors (N, 3, S, S), normalised, channels_last, fp32, bf16 or fp16.
        index: int64 (N,) catalog row shown.
        requested: int64 (N,) catalog row the epoch asked for; differs from `index` where a bad file was substituted.
        labels: float32 (N, C), 1 where the row shown has the class.
        plan: the decisions behind the views, NumPy arrays; always on the host.
        substituted: bool (N,).
    """

    views: tuple[torch.Tensor, ...]
    index: torch.Tensor
    requested: torch.Tensor
    labels: torch.Tensor
    plan: ViewPlan
    substituted: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: str | torch.device, non_blocking: bool = True) -> Views:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Views:
        """Return the batch with its tensors in page-locked memory (PyTorch's DataLoader calls this by name)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, f) -> Views:
        return replace(
            self,
            views=tuple(f(v) for v in self.views),
            index=f(self.index),
            requested=f(self.requested),
            labels=f(self.labels),
            substituted=f(self.substituted),
        )

"""The batch a loader yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.dali_pipes.view_plan import ViewPlan

if TYPE_CHECKING:
    import torch


@dataclass
class Views:
    """One rank's part of a global batch: N samples, V views; all tensors lie on the loader's device.

    Attributes:
        views: V tensors (N, 3, S, S), normalised, channels_last, fp32, bf16 or fp16.
        index: int64 (N,) catalog row shown.
        requested: int64 (N,) catalog row the epoch asked for; differs from `index` where a bad file was substituted.
        labels: float32 (N, C), 1 where the row shown has the class.
        plan: the decisions behind the views, NumPy arrays; always on the host.
        substituted: bool (N,).
        boxes: each view's boxes, where they were asked for (`view_boxes=True`).
    """

    views: tuple[torch.Tensor, ...]
    index: torch.Tensor
    requested: torch.Tensor
    labels: torch.Tensor
    plan: ViewPlan
    substituted: torch.Tensor
    boxes: tuple[ViewBoxes, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the views and what comes with them."""
        of_boxes = (tensor for boxes in self.boxes for tensor in boxes.tensors())
        return (*self.views, self.index, self.requested, self.labels, self.substituted, *of_boxes)

    def to(self, device: str | torch.device, non_blocking: bool = True) -> Views:
        """Return the batch with its tensors on `device`."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Views:
        """Return the batch with its tensors in page-locked memory (PyTorch's DataLoader calls this by name)."""
        return self.map(lambda t: t.pin_memory())

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> Views:
        """Return the batch with `f` of each tensor."""
        return replace(
            self,
            views=tuple(f(v) for v in self.views),
            index=f(self.index),
            requested=f(self.requested),
            labels=f(self.labels),
            substituted=f(self.substituted),
            boxes=tuple(boxes.map(f) for boxes in self.boxes),
        )

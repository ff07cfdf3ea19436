"""The batch a loader yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from objcrop.dali_pipes.batch import Batch
from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.dali_pipes.view_plan import ViewPlan

if TYPE_CHECKING:
    import torch


@dataclass
class Views(Batch):
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

"""Regions of a feature pyramid, each from the level of its size (Lin et al. 2017, equation 1), by RoIAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.ops import roi_align

CANONICAL, LEVEL = 224, 4  # a region of so many pixels a side is taken from the level of stride 2⁴


class PyramidRoIAlign(nn.Module):
    """From maps and boxes to regions (R, C, size, size), all boxes of the first image first.

    torchvision's MultiScaleRoIAlign, but with strides that are given, not guessed of the first batch, and aligned.

    Args:
        size: cells of a region along a side.
        strides: pixels of the image to a cell of each map, powers of 2, the finest first; one for a single map.
        aligned: whether the centre of a cell lies at its half, as in Detectron2.
        samples: points along each side of a cell that are averaged; 0: as many as there are cells of the map.
    """

    def __init__(self, size: int, strides: Sequence[int], *, aligned: bool = True, samples: int = 0) -> None:
        super().__init__()
        self.size, self.strides, self.aligned, self.samples = size, tuple(strides), aligned, samples

    def forward(self, maps: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the regions.

        Args:
            maps: a level each, (N, C, h, w).
            boxes: of N images, (k, 4) in pixels of the batch's frame.
        """
        flat = torch.cat(list(boxes))
        image = torch.repeat_interleave(
            torch.arange(len(boxes), device=flat.device), torch.tensor([len(b) for b in boxes], device=flat.device)
        )
        regions = torch.cat([image[:, None].to(flat), flat], 1)
        out = maps[0].new_zeros(len(flat), maps[0].shape[1], self.size, self.size)
        level = self.level_of(flat)
        for i, (map_, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.where(level == i)[0]
            out[here] = roi_align(map_, regions[here], self.size, 1 / stride, self.samples or -1, self.aligned)
        return out

    def level_of(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return which map each box (R, 4) is taken from, int64 (R,)."""
        first = int(math.log2(self.strides[0]))
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(LEVEL + torch.log2(sides / CANONICAL) + 1e-6)
        return (level.clamp(first, first + len(self.strides) - 1) - first).long()

"""PSPNet: means of the whole map and of its parts, beside each cell (Zhao et al. 2017, section 3.2, figure 3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from objcrop.ssl.transfer.fcn import convolution

BINS = (1, 2, 3, 6)  # parts a side of each level


class PyramidPooling(nn.Module):
    """From a map (N, C, h, w) to one of C + 4 · (C // 4) channels: itself, and each level's means.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *convolution(channels, width)) for bins in BINS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool, narrow, bring back to the map's size (bilinear), and join."""
        means = [F.interpolate(level(x), x.shape[-2:], mode="bilinear", align_corners=False) for level in self.levels]
        return torch.cat([x, *means], 1)


def pspnet_head(channels: int, classes: int) -> nn.Sequential:
    """Return the head, from a map (N, channels, h, w) to logits (N, classes, h, w); dropout as in its authors' code."""
    width = channels // len(BINS)
    return nn.Sequential(
        PyramidPooling(channels),
        *convolution(channels + width * len(BINS), width, 3),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes, 1),
    )

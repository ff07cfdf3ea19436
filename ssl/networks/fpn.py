"""The feature pyramid (Lin et al. 2017) with BatchNorm on every convolution, as SoCo and CIB's detectors have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork


class Pyramid(nn.Module):
    """Maps of a backbone's stages to as many of one width, each told of the coarser ones; no activation.

    Args:
        channels: of the backbone's maps, the finest first.
        width: channels of each level.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = FeaturePyramidNetwork(list(channels), width, norm_layer=nn.BatchNorm2d)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # MMDetection's, which the published weights began with
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return P2, P3, … (N, width, h, w) of c2, c3, …, of the same sides."""
        return list(self.levels({str(level): each for level, each in enumerate(maps)}).values())

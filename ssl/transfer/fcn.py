"""FCN: a class for every cell of a feature map, by convolutions alone (Long et al. 2015, section 3).

The head is torchvision's, or that of MoCo (He et al. 2020, appendix, semantic segmentation): two 3×3 convolutions of
256 channels with dilation 6. Both take a dilated network in place of Long's skips.
"""

from __future__ import annotations

from torch import nn


def fcn_head(
    channels: int, classes: int, *, width: int | None = None, convolutions: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return the head, from a map (N, channels, h, w) to logits (N, classes, h, w).

    Args:
        channels: of the map.
        classes: how many.
        width: channels of the head's own maps; a quarter of the map's when left out.
        convolutions: of 3×3, each with BatchNorm and ReLU.
        dilation: theirs.
    """
    width = channels // 4 if width is None else width
    layers: list[nn.Module] = []
    for before in (channels, *[width] * (convolutions - 1)):
        layers += convolution(before, width, 3, dilation)
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Conv2d(width, classes, 1))


def convolution(before: int, after: int, side: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Return a convolution of odd side that keeps the map's size, with BatchNorm and ReLU."""
    padding = side // 2 * dilation
    conv = nn.Conv2d(before, after, side, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]

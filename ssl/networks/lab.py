"""Lightness and colour, each with a network of its own (Tian et al. 2019, "Contrastive Multiview Coding").

A view comes as any other, sRGB less ImageNet's mean and divided by its deviation, and is turned into CIE Lab here, on
the device: so whatever takes a backbone takes this one.
"""

from __future__ import annotations

import torch
from torch import nn

from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD

# CIE 1931 XYZ of linear sRGB (ITU-R BT.709's primaries), and the white of D65, as skimage has them.
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
D65 = (0.95047, 1.0, 1.08883)
# Middle and half of the range of L, a and b in sRGB: what the networks get lies in -1 to 1 (CMC's train_CMC.py).
MIDDLE = (50.0, 6.025, -6.6895)
HALF_RANGE = (50.0, 92.208, 101.1675)


def lab(rgb: torch.Tensor) -> torch.Tensor:
    """Return CIE L*a*b* of sRGB, both (N, 3, H, W); values from 0 to 1 become L from 0 to 100, a and b about ±100."""
    red, green, blue = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92).unbind(1)
    f = []
    for (of_red, of_green, of_blue), white in zip(XYZ, D65):
        t = (of_red * red + of_green * green + of_blue * blue) / white
        f.append(torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 16 / 116))
    x, y, z = f
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_views(views: torch.Tensor) -> torch.Tensor:
    """Return normalised Lab of views normalised by ImageNet's mean and deviation, both (N, 3, H, W); float32 at least.

    What bicubic resizing or bf16 took out of the range of colours is put back on its edge.
    """
    wide = views if views.dtype == torch.float64 else views.float()
    channels = zip(wide.unbind(1), IMAGENET_MEAN, IMAGENET_STD)
    rgb = torch.stack([channel * std + mean for channel, mean, std in channels], dim=1).clamp(0, 1)
    scaled = zip(lab(rgb).unbind(1), MIDDLE, HALF_RANGE)
    return torch.stack([(channel - middle) / half for channel, middle, half in scaled], dim=1)


class LabEncoder(nn.Module):
    """Two networks.

    Args:
        l: of lightness, (N, 1, S, S) to (N, width).
        ab: of colour, (N, 2, S, S) to (N, width).
    """

    def __init__(self, l: nn.Module, ab: nn.Module) -> None:  # noqa: E741, its name in Lab
        super().__init__()
        self.l, self.ab = l, ab

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Return the features of lightness, then those of colour, (N, 2 × width), of views (N, 3, S, S)."""
        lightness, colour = lab_views(views).to(memory_format=torch.channels_last).split((1, 2), dim=1)
        return torch.cat((self.l(lightness), self.ab(colour)), dim=1)

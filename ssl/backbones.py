"""The encoder: any torchvision ResNet without its classifier."""

from __future__ import annotations

import torch
from torch import nn

from objcrop.errors import UsageError

SMALL = 96  # views of this side and less lose too much to a stem that shrinks them fourfold


def backbone_names() -> list[str]:
    """Return the names `backbone` takes."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if "resne" in name]


def backbone(arch: str, size: int) -> tuple[nn.Module, int]:
    """Make an encoder with random weights from torch's global generator.

    Args:
        arch: a torchvision ResNet by name, "resnet18" say.
        size: side of the views in pixels; at 96 and below the stem's convolution is 3×3, at 48 and below without the
            pooling after it, at 32 and below of stride 1 (after Chen et al. 2020, SimCLR, appendix B.9).

    Returns:
        A module from (N, 3, size, size) to (N, width), and the width.

    Raises:
        UsageError: an unknown name.
    """
    from torchvision import models

    if arch not in backbone_names():
        raise UsageError(f"arch is '{arch}', but it must be one of: {', '.join(backbone_names())}.")
    network = models.get_model(arch, weights=None)
    width = network.fc.in_features
    network.fc = nn.Identity()
    if size <= SMALL:
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1 if size <= 32 else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        if size <= 48:
            network.maxpool = nn.Identity()
    return network.to(memory_format=torch.channels_last), width

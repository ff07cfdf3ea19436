"""A ResNet of output stride 8 or 16: strides of the last stages become dilations, no weight changes.

Source: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions" (ICLR 2016), section 2; as it is with
torchvision's `replace_stride_with_dilation`, for BasicBlocks and timm's ResNets too.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from objcrop.errors import UsageError


class DilatedResNet(nn.Module):
    """A ResNet's maps c4 and c5, its parameters under the ResNet's own names.

    Args:
        network: a ResNet of torchvision or timm, as `backbone` makes it; its stages are changed in place.
        arch: its name, for the error.
        stride: pixels of the image to a cell of c5, 8 or 16.

    Raises:
        UsageError: the network is no ResNet.
    """

    def __init__(self, network: nn.Module, arch: str, stride: int) -> None:
        super().__init__()
        parts = OrderedDict(network.named_children())
        names = list(parts)
        if "layer4" not in parts or "conv1" not in parts:
            raise UsageError(f"arch is '{arch}', which is no ResNet and cannot be dilated; take resnet50, say.")
        for name in names[: names.index("layer4") + 1]:
            self.add_module(name, parts[name])
        dilation = 1
        stages = parts["layer3"], parts["layer4"]
        for stage in stages if stride == 8 else stages[1:]:
            dilation *= _dilate(stage, dilation)
        self.channels = _channels(stages[0]), _channels(stages[1])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return c4 and c5 of images (N, 3, H, W)."""
        x, maps = images, {}
        for name, part in self.named_children():
            x = maps[name] = part(x)
        return maps["layer3"], maps["layer4"]


def _dilate(stage: nn.Module, before: int) -> int:
    """Take a stage's stride away and spread its convolutions instead; return what its stride was.

    Args:
        stage: blocks.
        before: dilation that the stage before has. The convolution that had the stride keeps it, all after it spread.
    """
    found = [conv for conv in stage.modules() if isinstance(conv, nn.Conv2d)]
    stride = max(conv.stride[0] for conv in found)
    first = True
    for conv in found:
        if conv.kernel_size == (3, 3):
            spread = before if first else before * stride
            conv.dilation, conv.padding = (spread, spread), (spread, spread)
            first = False
        conv.stride = (1, 1)
    for pool in stage.modules():
        if isinstance(pool, nn.AvgPool2d):  # timm's other way to shrink a shortcut
            pool.kernel_size = pool.stride = 1
    return stride


def _channels(stage: nn.Module) -> int:
    return [norm for norm in stage.modules() if isinstance(norm, nn.BatchNorm2d)][-1].num_features

"""torchvision's ResNets with fewer channels."""

from __future__ import annotations

from typing import Any

from torch import nn


def half_width(network: Any, channels: int) -> nn.Module:
    """Return a ResNet of half the width that takes other channels (CMC's "v1"): its stem keeps 64.

    Args:
        network: torchvision's, of which blocks and their number are taken.
        channels: of the views.
    """
    return _of_width(network, channels, 64, 32)


def quarter_width(network: Any) -> nn.Module:
    """Return a ResNet of a quarter of the width, about a tenth of the work: for small views on a CPU."""
    return _of_width(network, 3, 16, 16)


def _of_width(network: Any, channels: int, stem: int, planes: int) -> nn.Module:
    network.conv1 = nn.Conv2d(channels, stem, 7, stride=2, padding=3, bias=False)
    if stem != 64:
        network.bn1 = nn.BatchNorm2d(stem)
    network.inplanes = stem
    for number in range(1, 5):
        layer = getattr(network, f"layer{number}")
        stride = 1 if number == 1 else 2
        made = network._make_layer(type(layer[0]), planes * 2 ** (number - 1), len(layer), stride=stride)
        setattr(network, f"layer{number}", made)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network

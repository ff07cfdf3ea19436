"""Feature maps out of a backbone, for losses on cells and regions (DenseCL, SoCo).

    network, width = backbone(recipe.arch, recipe.size, recipe.init)
    channels = give_maps(network, recipe.arch, recipe.size, stages=4)   # of c2, c3, c4, c5
    features, maps = network(views)                                     # (N, width) as before, and four maps

The network stays what it was, with the same parameters under the same names: what `probe` and `export` read, what
`init` and checkpoints hold, what `--compile` compiles. One pass makes maps and features.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from objcrop.errors import UsageError

Maps = tuple[torch.Tensor, ...]


def give_maps(network: nn.Module, arch: str, size: int, stages: int = 1) -> tuple[int, ...]:
    """Let a backbone return its features and the maps of its last stages.

    Args:
        network: as `backbone` made it; from now on (N, 3, S, S) to (features (N, width), maps), each map (N, C, h, w).
        arch: its name, for the error.
        size: side of the views, pixels.
        stages: how many maps, the last of which is c5 in a ResNet; of several, each is twice as wide and high as the
            next.

    Returns:
        The maps' channels.

    Raises:
        UsageError: the network has no such maps.
    """
    plain = network.forward
    network.forward = types.MethodType(_forward_of(arch, stages), network)  # type: ignore[method-assign]
    training, dtype = network.training, next(network.parameters()).dtype
    view = torch.linspace(-1, 1, 3 * size * size, dtype=dtype).view(1, 3, size, size)
    network.eval()
    try:
        with torch.no_grad():
            features, maps = network(view)
            same = features.shape == (before := plain(view)).shape and torch.allclose(features, before, 1e-3, 1e-3)
    except (AttributeError, TypeError, AssertionError, ValueError, RuntimeError):  # timm's, each network in its own way
        maps, same = (), False
    network.train(training)
    halved = all(-(-a.shape[-1] // 2) == b.shape[-1] for a, b in itertools.pairwise(maps))
    if not same or len(maps) != stages or not halved or any(map_.ndim != 4 for map_ in maps):
        what = "a feature map" if stages == 1 else f"{stages} feature maps, each half as wide as the one before"
        raise UsageError(f"arch is '{arch}', which does not give {what}; take a ResNet, resnet50 say.")
    return tuple(map_.shape[1] for map_ in maps)


def _forward_of(arch: str, stages: int) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, Maps]]:
    if arch.startswith("timm/"):

        def forward(self: Any, views: torch.Tensor) -> tuple[torch.Tensor, Maps]:
            last, maps = self.forward_intermediates(views, indices=stages, norm=True, output_fmt="NCHW")
            return self.forward_head(last, pre_logits=True), tuple(maps)

    else:  # a ResNet of torchvision

        def forward(self: Any, views: torch.Tensor) -> tuple[torch.Tensor, Maps]:
            x, maps = self.maxpool(self.relu(self.bn1(self.conv1(views)))), []
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = stage(x)
                maps.append(x)
            return torch.flatten(self.avgpool(x), 1), tuple(maps[-stages:])

    return forward

"""Faster and Mask R-CNN on a feature pyramid (Lin et al. 2017), R50-FPN say.

Parameters have the names of torchvision's `fasterrcnn_resnet50_fpn`, whose BatchNorm learns and stands in the pyramid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from objcrop.errors import UsageError
from objcrop.ssl.networks.feature_maps import give_maps
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.proposal_network import ProposalNetwork, Proposed
from objcrop.ssl.transfer.rcnn import DETECTRON2, PROBE, RCNN, Convention
from objcrop.ssl.transfer.region_heads import BoxPredictor, MaskPredictor, RegionHeads


class PyramidBackbone(nn.Module):
    """A backbone's four maps and their pyramid, "0" to "3", and "pool", each half as wide as the one before.

    BatchNorm stands after every convolution of the pyramid (He et al. 2020, section 4.2).

    Args:
        origin: the backbone, which is changed in place.
        width: channels of the pyramid.

    Attributes:
        strides: pixels to a cell of each level.

    Raises:
        UsageError: it has no such maps, or takes images of one size only.
    """

    def __init__(self, origin: Origin, width: int) -> None:
        super().__init__()
        channels = give_maps(origin.network, origin.arch, origin.size, stages=4)
        self.body = origin.network
        self.fpn = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool(), nn.BatchNorm2d)
        maps = _learn_maps_alone(self.body, origin.arch)
        first = PROBE // maps[0].shape[-2]
        self.strides = [first << level for level in range(5)]

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Return the pyramid of images (N, 3, H, W), whose sides are multiples of 32."""
        _, maps = self.body(images)
        levels = self.fpn(OrderedDict((str(i), map_) for i, map_ in enumerate(maps)))
        return OrderedDict((name, level.float()) for name, level in levels.items())


def _learn_maps_alone(network: nn.Module, arch: str) -> Sequence[torch.Tensor]:
    """Leave out of learning what no map depends on, a classifier's norm say; return the maps of an image.

    DistributedDataParallel waits for the gradient of everything that learns.
    """
    training = network.training
    try:
        _, maps = network.eval()(torch.randn(1, 3, PROBE, PROBE + 32))
        torch.stack([map_.square().mean() for map_ in maps]).sum().backward()
    except (AssertionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:120].rstrip(".")
        raise UsageError(f"arch is '{arch}', which does not take images of every size ({said}).") from None
    network.train(training)
    for weight in network.parameters():
        weight.requires_grad_(weight.grad is not None)
        weight.grad = None
    return maps


def fpn_detector(
    origin: Origin,
    classes: int,
    *,
    masks: bool,
    anchor: int,
    regions: int,
    width: int = 256,
    convention: Convention = DETECTRON2,
) -> RCNN:
    """Return Faster R-CNN, or with masks Mask R-CNN, on a feature pyramid.

    Args:
        origin: the backbone.
        classes: how many, the background not among them.
        masks: whether masks are learnt too.
        anchor: of the finest level, the square root of its area in pixels; twice as much on each level.
        regions: learnt from in each image.
        width: channels of pyramid and mask head, a quarter of those of the box head.
        convention: what is computed.
    """
    backbone = PyramidBackbone(origin, width)
    anchors = convention.anchors([[anchor << level] for level in range(5)], backbone.strides)
    box_head = TwoMLPHead(width * 7 * 7, 4 * width)
    for layer in (box_head.fc6, box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    heads = RegionHeads(
        convention.pool(7, backbone.strides[:4]),
        box_head,
        BoxPredictor(4 * width, classes + 1),
        convention.pool(14, backbone.strides[:4]) if masks else None,
        MaskRCNNHeads(width, (width,) * 4, 1) if masks else None,
        MaskPredictor(width, classes + 1) if masks else None,
        regions=regions,
        beta=convention.beta,
        aligned=convention.aligned,
    )
    return RCNN(backbone, ProposalNetwork(anchors, width, Proposed(2000, 1000, 1000, 1000), convention.beta), heads)

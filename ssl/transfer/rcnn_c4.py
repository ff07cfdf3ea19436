"""Faster and Mask R-CNN whose box head is a ResNet's last stage (He et al. 2016, appendix A), R50-C4 say.

Proposals and regions come from c4; the last stage looks at each region of 14 × 14 cells, and a BatchNorm follows it (He
et al. 2020, section 4.2). Masks are predicted of the same features, without a head of their own.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.proposal_network import ProposalNetwork, Proposed
from objcrop.ssl.transfer.rcnn import DETECTRON2, PROBE, RCNN, Convention
from objcrop.ssl.transfer.region_heads import BoxPredictor, MaskPredictor, RegionHeads


class C4Backbone(nn.Sequential):
    """A ResNet up to c4, its parameters under the ResNet's own names.

    Args:
        parts: of the ResNet, by name.

    Attributes:
        channels: of c4.
        stride: pixels of the image to a cell.
    """

    def __init__(self, parts: OrderedDict[str, nn.Module]) -> None:
        super().__init__(parts)
        with torch.no_grad():
            map_ = self.eval()(torch.zeros(1, 3, PROBE, PROBE))["0"]
        self.train()
        self.channels, self.stride = map_.shape[1], PROBE // map_.shape[-1]

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Return c4 of images (N, 3, H, W), as "0"."""
        return OrderedDict({"0": super().forward(input).float()})


def c4_detector(
    origin: Origin, classes: int, *, masks: bool, anchor: int, regions: int, convention: Convention = DETECTRON2
) -> RCNN:
    """Return Faster R-CNN, or with masks Mask R-CNN, with the last stage as box head.

    Args:
        origin: the backbone, a ResNet.
        classes: how many, the background not among them.
        masks: whether masks are learnt too.
        anchor: square root of the smallest anchors' area, pixels; of five sizes, each twice the one before.
        regions: learnt from in each image.
        convention: what is computed.

    Raises:
        UsageError: the network is no ResNet.
    """
    parts = OrderedDict(origin.network.named_children())
    if "layer4" not in parts or "conv1" not in parts:
        raise UsageError(
            f"arch is '{origin.arch}', which is no ResNet and has no last stage that could be the box head of C4; take "
            "resnet50, say."
        )
    names = list(parts)
    backbone = C4Backbone(OrderedDict((name, parts[name]) for name in names[: names.index("layer4")]))
    last = parts["layer4"]
    channels = [norm for norm in last.modules() if isinstance(norm, nn.BatchNorm2d)][-1].num_features
    anchors = convention.anchors([[anchor << size for size in range(5)]], [backbone.stride])
    heads = RegionHeads(
        convention.pool(14, [backbone.stride]),
        nn.Sequential(OrderedDict(layer4=last, norm=nn.BatchNorm2d(channels))),
        BoxPredictor(channels, classes + 1),
        None,
        None,
        MaskPredictor(channels, classes + 1) if masks else None,
        regions=regions,
        beta=convention.beta,
        aligned=convention.aligned,
    )
    rpn = ProposalNetwork(anchors, backbone.channels, Proposed(12000, 6000, 2000, 1000), convention.beta)
    return RCNN(backbone, rpn, heads)

"""Faster and Mask R-CNN (Ren et al. 2015; He et al. 2017), of torchvision's parts, whatever the backbone.

Parameters have torchvision's names. Two conventions of what is computed exist, Detectron2's, which papers have, and
torchvision's own; see `Convention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from objcrop.ssl.transfer.proposal_network import RATIOS, Anchors, ProposalNetwork
from objcrop.ssl.transfer.region_heads import Found, RegionHeads
from objcrop.ssl.transfer.roi_align import PyramidRoIAlign

PROBE = 128  # side of an image that strides are found with, pixels


class Convention(NamedTuple):
    """What Detectron2 and torchvision compute differently.

    Attributes:
        beta: where the losses of boxes turn from squares to absolute values.
        aligned: whether RoIAlign has a cell's centre at its half; what masks are compared with is rounded then.
        samples: points along a side of each cell of a region; 0: as many as it covers cells of the map.
        exact_anchors: whether anchors keep their sides and their network's strides (`Anchors`).
    """

    beta: float
    aligned: bool
    samples: int
    exact_anchors: bool

    def anchors(self, sizes: Sequence[Sequence[int]], strides: Sequence[int]) -> AnchorGenerator:
        """Return what makes the anchors of maps."""
        if self.exact_anchors:
            return Anchors(sizes, strides)
        return AnchorGenerator(tuple(map(tuple, sizes)), (RATIOS,) * len(sizes))

    def pool(self, size: int, strides: Sequence[int]) -> PyramidRoIAlign:
        """Return what makes regions of maps."""
        return PyramidRoIAlign(size, strides, aligned=self.aligned, samples=self.samples)


DETECTRON2 = Convention(beta=0.0, aligned=True, samples=0, exact_anchors=True)
TORCHVISION = Convention(beta=1 / 9, aligned=False, samples=2, exact_anchors=False)


class RCNN(nn.Module):
    """A backbone, the network that proposes regions, and heads that look at them.

    Args:
        backbone: from images to maps by name, float32.
        rpn: proposes.
        roi_heads: look at what was proposed.
    """

    def __init__(self, backbone: nn.Module, rpn: ProposalNetwork, roi_heads: RegionHeads) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads

    def losses(
        self, images: torch.Tensor, sizes: Sequence[Sequence[int]], targets: list[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch, in training.

        Args:
            images: (N, 3, H, W), normalised.
            sizes: height and width of each in this frame.
            targets: of each, "boxes" float32 (k, 4), "labels" int64 (k,) from 1, "masks" uint8 (k, h, w) where masks
                are learnt.
        """
        _, losses = self._both(images, sizes, targets)
        return losses

    def forward(self, images: torch.Tensor, sizes: Sequence[Sequence[int]]) -> Found:
        """Return what is found in each image: "boxes" in this frame, "scores", "labels" from 1, "masks" (k, m, m)."""
        return self._both(images, sizes, None)[0]

    def _both(self, images: torch.Tensor, sizes: Any, targets: Any) -> tuple[Found, dict[str, torch.Tensor]]:
        shapes = [(int(height), int(width)) for height, width in sizes]
        maps = self.backbone(images)
        proposals, losses = self.rpn(ImageList(images, shapes), maps, targets)
        found, of_regions = self.roi_heads(maps, proposals, shapes, targets)
        named = {"objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
        return found, of_regions | {name: losses[theirs] for name, theirs in named.items() if losses}

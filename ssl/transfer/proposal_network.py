"""The region proposal network (Ren et al. 2015), torchvision's with Detectron2's anchors, loss and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors


class Proposed(NamedTuple):
    """How many proposals of a level are looked at, and how many of an image are kept when they no longer overlap."""

    looked_at: int
    looked_at_in_test: int
    kept: int
    kept_in_test: int


class Anchors(AnchorGenerator):
    """Anchors as Detectron2 has them: sides are not rounded, and strides are the network's, not the frame's quotient.

    Args:
        sizes: of each map, the square roots of its anchors' areas, pixels.
        strides: of each map, pixels to a cell.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], strides: Sequence[int]) -> None:
        super().__init__(tuple(map(tuple, sizes)), (RATIOS,) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(self, scales: Any, aspect_ratios: Any, **_: Any) -> torch.Tensor:
        """Return the anchors (A, 4) around a cell's corner."""
        sides = torch.as_tensor(scales, dtype=torch.float32)[None]
        high = torch.as_tensor(aspect_ratios, dtype=torch.float32).sqrt()[:, None]
        half = torch.stack([(sides / high).flatten(), (sides * high).flatten()], 1) / 2
        return torch.cat([-half, half], 1)

    def forward(self, image_list: Any, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the anchors of all maps, (A, 4), once for each image."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(map_.shape[-2:]) for map_ in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class _Head(RPNHead):
    """In bfloat16 or not, what comes out is float32: boxes of hundreds of pixels need it."""

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        scores, boxes = super().forward(x)
        return [each.float() for each in scores], [each.float() for each in boxes]


class ProposalNetwork(RegionProposalNetwork):
    """Proposals and their two losses: 256 anchors an image, half of them positive where there are so many.

    Args:
        anchors: of all maps; the same number at each cell.
        channels: of the maps.
        proposed: how many proposals.
        beta: where the loss of boxes turns from squares to absolute values; 0: nowhere, they are absolute.
        convolutions: before the two predictions.
    """

    def __init__(
        self, anchors: AnchorGenerator, channels: int, proposed: Proposed, beta: float, convolutions: int = 1
    ) -> None:
        looked_at = {"training": proposed.looked_at, "testing": proposed.looked_at_in_test}
        kept = {"training": proposed.kept, "testing": proposed.kept_in_test}
        head = _Head(channels, anchors.num_anchors_per_location()[0], convolutions)
        super().__init__(anchors, head, 0.7, 0.3, 256, 0.5, looked_at, kept, 0.7)
        self.beta = beta

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of objectness and that of boxes."""
        positive, negative = (torch.where(torch.cat(each))[0] for each in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        wanted = torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(pred_bbox_deltas[positive], wanted, beta=self.beta, reduction="sum") / len(sampled)
        scores = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        return scores, boxes

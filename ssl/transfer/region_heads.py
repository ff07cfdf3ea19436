"""Heads on regions: classes, boxes (Girshick 2015), masks (He et al. 2017), of torchvision with Detectron2's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import roi_align

from objcrop.ssl.transfer.roi_align import PyramidRoIAlign

Found = list[dict[str, torch.Tensor]]


class BoxPredictor(FastRCNNPredictor):
    """Logits (R, classes) and offsets (R, 4 × classes) of regions (R, C) or their maps (R, C, h, w), float32.

    Weights begin as Detectron2's: normal, of deviation .01 and .001.

    Args:
        channels: of the regions.
        classes: how many, the background among them.
        one_box: offsets (R, 4), whatever the class.
    """

    def __init__(self, channels: int, classes: int, one_box: bool = False) -> None:
        super().__init__(channels, classes)
        if one_box:
            self.bbox_pred = nn.Linear(channels, 4)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        logits, offsets = super().forward(x.mean((2, 3)) if x.ndim == 4 else x)
        return logits.float(), offsets.float()


class MaskPredictor(MaskRCNNPredictor):
    """Logits (R, classes, 2h, 2w) of maps (R, C, h, w), float32; the last layer begins normal, of deviation .001."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, min(channels, 256), classes)
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.zeros_(layer.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return super().forward(input).float()


class RegionHeads(RoIHeads):
    """Learns from `regions` sampled regions of an image, a quarter of them of objects; tests by NMS of each class.

    Args:
        pool: regions for the box head.
        box_head: from them to features, (R, C) or (R, C, h, w).
        box_predictor: of these.
        mask_pool: regions for the mask head; None: masks are predicted of the box head's features, as in R50-C4.
        mask_head: from them to maps; None without masks or a head of their own.
        mask_predictor: of these; None without masks.
        regions: learnt from in each image.
        beta: as of `ProposalNetwork`.
        aligned: as of `PyramidRoIAlign`, for what masks are compared with; these are rounded then, as in Detectron2.
    """

    def __init__(
        self,
        pool: PyramidRoIAlign,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        mask_pool: PyramidRoIAlign | None,
        mask_head: nn.Module | None,
        mask_predictor: MaskPredictor | None,
        *,
        regions: int,
        beta: float,
        aligned: bool,
    ) -> None:
        super().__init__(
            pool, box_head, box_predictor, 0.5, 0.5, regions, 0.25, None, 0.05, 0.5, 100,
            mask_pool, mask_head, mask_predictor,
        )  # fmt: skip
        self.beta, self.aligned = beta, aligned

    def has_mask(self) -> bool:
        """Whether masks are learnt."""
        return self.mask_predictor is not None

    def forward(
        self, features: Any, proposals: list[torch.Tensor], image_shapes: list[tuple[int, int]], targets: Any = None
    ) -> tuple[Found, dict[str, torch.Tensor]]:
        """Return detections, or in training losses by name.

        Args:
            features: maps by name, of each level that regions are taken from, the finest first.
            proposals: boxes of each image.
            image_shapes: height and width of each.
            targets: of each, "boxes" (k, 4), "labels" (k,) from 1, "masks" (k, h, w); None in testing.
        """
        maps = list(features.values())[: len(self.box_roi_pool.strides)]
        if self.training:
            return [], self._losses(maps, proposals, image_shapes, targets)
        found = self.postprocess_detections(*self._predicted(maps, proposals, image_shapes), image_shapes)
        detections = [dict(zip(("boxes", "scores", "labels"), image)) for image in zip(*found)]
        if self.has_mask():
            boxes, labels = found[0], found[2]
            for image, masks in zip(detections, maskrcnn_inference(self._mask_logits(maps, boxes), labels)):
                image["masks"] = masks[:, 0]
        return detections, {}

    def _predicted(self, maps: list[torch.Tensor], proposals: list[torch.Tensor], image_shapes: Any) -> Any:
        """Return logits (R, classes), offsets (R, 4 × classes) and the boxes that these are of."""
        return *self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals))), proposals

    def _losses(
        self, maps: list[torch.Tensor], proposals: list[torch.Tensor], image_shapes: Any, targets: Any
    ) -> dict[str, torch.Tensor]:
        sampled: Any = self.select_training_samples(proposals, targets)
        boxes, matched, labels, _ = sampled
        losses, features = self._box_losses(maps, sampled, image_shapes, targets)
        if self.has_mask():
            of_objects = [each > 0 for each in labels]
            boxes = [box[kept] for box, kept in zip(boxes, of_objects)]
            matched = [match[kept] for match, kept in zip(matched, of_objects)]
            shared = features[torch.cat(of_objects)] if self.mask_roi_pool is None else None
            drawn = self._mask_logits(maps, boxes, shared)
            masks = [
                self._shown(t["masks"], b, m, drawn.shape[-1]) for t, b, m in zip(targets, boxes, matched, strict=True)
            ]
            classes = torch.cat(labels)
            losses["mask"] = _mask_loss(drawn, torch.cat(masks), classes[classes > 0])
        return losses

    def _box_losses(
        self, maps: list[torch.Tensor], sampled: Any, image_shapes: Any, targets: Any
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the losses of classes and boxes, and the box head's features."""
        boxes, _, labels, wanted = sampled
        features = self.box_head(self.box_roi_pool(maps, boxes))
        logits, offsets = self.box_predictor(features)
        return box_losses(logits, offsets, torch.cat(labels), torch.cat(wanted), self.beta), features

    def _mask_logits(
        self, maps: list[torch.Tensor], boxes: Sequence[torch.Tensor], shared: torch.Tensor | None = None
    ) -> torch.Tensor:
        if shared is None and self.mask_roi_pool is None:
            shared = self.box_head(self.box_roi_pool(maps, boxes))
        elif shared is None:
            shared = self.mask_head(self.mask_roi_pool(maps, boxes))
        return self.mask_predictor(shared)

    def _shown(self, masks: torch.Tensor, boxes: torch.Tensor, matched: torch.Tensor, side: int) -> torch.Tensor:
        """Return what the masks (k, h, w) show in the boxes (R, 4) matched to them, (R, side, side)."""
        regions = torch.cat([matched[:, None].to(boxes), boxes], 1)
        shown = roi_align(masks[:, None].to(boxes), regions, side, aligned=self.aligned)[:, 0]
        return (shown >= 0.5).to(boxes) if self.aligned else shown


def box_losses(
    logits: torch.Tensor, offsets: torch.Tensor, classes: torch.Tensor, wanted: torch.Tensor, beta: float
) -> dict[str, torch.Tensor]:
    """Return the loss of classes, a mean, and that of boxes, the sum of the objects' shared among all regions.

    Args:
        logits: (R, classes).
        offsets: (R, 4 × classes), or of all classes alike (R, 4).
        classes: int64 (R,), 0 for the background.
        wanted: (R, 4) offsets; those of the background do not count.
        beta: as of `ProposalNetwork`.
    """
    positive = torch.where(classes > 0)[0]
    of_each = offsets.reshape(len(classes), -1, 4)
    of_class = of_each[positive, classes[positive] if of_each.shape[1] > 1 else 0]
    box = F.smooth_l1_loss(of_class, wanted[positive], beta=beta, reduction="sum") / max(len(classes), 1)
    return {"classifier": F.cross_entropy(logits, classes), "box": box}


def _mask_loss(logits: torch.Tensor, wanted: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mean of each region's own class; 0 where there is no region."""
    if not len(wanted):
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(wanted)), classes], wanted)

"""Cascade R-CNN (Cai and Vasconcelos 2018): three box heads, each of which learns from the boxes of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from objcrop.ssl.transfer.region_heads import BoxPredictor, MaskPredictor, RegionHeads, box_losses
from objcrop.ssl.transfer.roi_align import PyramidRoIAlign

OVERLAPS = (0.5, 0.6, 0.7)  # that make a box one of an object, of each stage
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # of offsets


class CascadeHeads(RegionHeads):
    """Box heads of three stages, and a mask head on what the first one learns from; arguments as of `RegionHeads`.

    Args:
        pool: regions for the box heads.
        box_heads: of each stage.
        box_predictors: of each stage, with one box whatever the class.
        mask_pool: regions for the mask head.
        mask_head: from them to maps.
        mask_predictor: of these.
        regions: learnt from in each image, by every stage the same.
        beta: as of `ProposalNetwork`.
        aligned: as of `RegionHeads`.
    """

    def __init__(
        self,
        pool: PyramidRoIAlign,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[BoxPredictor],
        mask_pool: PyramidRoIAlign,
        mask_head: nn.Module,
        mask_predictor: MaskPredictor,
        *,
        regions: int,
        beta: float,
        aligned: bool,
    ) -> None:
        heads, predictors = nn.ModuleList(box_heads), nn.ModuleList(box_predictors)
        shared = {"regions": regions, "beta": beta, "aligned": aligned}
        super().__init__(pool, heads, predictors, mask_pool, mask_head, mask_predictor, **shared)  # type: ignore[arg-type]
        self.coders = [BoxCoder(weights) for weights in WEIGHTS]

    def _predicted(self, maps: list[torch.Tensor], proposals: list[torch.Tensor], image_shapes: Any) -> Any:
        """Return the mean of the stages' scores, as logits, and the last stage's boxes, with offsets of 0."""
        boxes, scores = proposals, []
        for stage in range(len(self.coders)):
            logits, offsets = self._stage(stage, self.box_roi_pool(maps, boxes))
            scores.append(logits.softmax(-1))
            boxes = self._moved(stage, offsets, boxes, image_shapes)
        mean = torch.stack(scores).mean(0)
        return mean.log(), mean.new_zeros(len(mean), 4 * mean.shape[1]), boxes

    def _box_losses(
        self, maps: list[torch.Tensor], sampled: Any, image_shapes: Any, targets: Any
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        losses: dict[str, torch.Tensor] = {}
        boxes = sampled[0]
        for stage, coder in enumerate(self.coders):
            labels, nearest = zip(*(_matched(each, t, OVERLAPS[stage]) for each, t in zip(boxes, targets, strict=True)))
            # Each stage gives the maps a third of its gradient (Detectron2).
            logits, offsets = self._stage(stage, _with_gradient(self.box_roi_pool(maps, boxes), 1 / len(self.coders)))
            wanted = torch.cat(list(coder.encode(nearest, boxes)))
            for name, loss in box_losses(logits, offsets, torch.cat(labels), wanted, self.beta).items():
                losses[f"{name}{stage}"] = loss
            boxes = self._moved(stage, offsets.detach(), boxes, image_shapes)
        return losses, logits

    def _stage(self, stage: int, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads: Any = self.box_head, self.box_predictor
        return heads[1][stage](heads[0][stage](regions))

    def _moved(
        self, stage: int, offsets: torch.Tensor, boxes: list[torch.Tensor], image_shapes: Any
    ) -> list[torch.Tensor]:
        """Return the boxes that a stage found, clipped; those that learning cannot use, without an area, stay."""
        moved = self.coders[stage].decode_single(offsets, torch.cat(boxes)).split([len(each) for each in boxes])
        clipped = [clip_boxes_to_image(each, shape) for each, shape in zip(moved, image_shapes)]
        flat = [(each[:, 2:] <= each[:, :2]).any(1, keepdim=True) for each in clipped]
        return [torch.where(none, old, new) for none, old, new in zip(flat, boxes, clipped)]


def _matched(boxes: torch.Tensor, target: dict[str, torch.Tensor], overlap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class of each box (R, 4), 0 where no object overlaps it so much, and the object's box."""
    if not len(target["boxes"]):
        return target["labels"].new_zeros(len(boxes)), boxes
    best, object_ = box_iou(target["boxes"], boxes).max(0)
    return torch.where(best >= overlap, target["labels"][object_], 0), target["boxes"][object_]


def _with_gradient(x: torch.Tensor, share: float) -> torch.Tensor:
    """Return `x`, which gets a share of its gradient."""
    return x * share + x.detach() * (1 - share)

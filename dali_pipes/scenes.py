"""Whole images with their objects, for detection: a batch, and how boxes and masks follow an image that is resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.dali_pipes.batch import Batch
from objcrop.dali_pipes.scene_plan import ScenePlan


@dataclass
class Scenes(Batch):
    """One rank's part of a global batch: N images of the sizes of the plan, upper left in a common frame.

    Attributes:
        images: uint8 (N, 3, H, W), black beyond each image's own size; H and W are multiples of 32.
        sizes: int64 (N, 2) height and width of each, as much of it as is shown.
        boxes: N of float32 (k, 4), x0, y0, x1, y1 in pixels of what is shown of the resized image, half-open; crowds
            and what lies beyond are left out.
        labels: N of int64 (k,), class ids.
        masks: N of uint8 (k, h, w), h and w as of `sizes`; empty where they were not asked for.
        index: int64 (N,) catalog row shown.
        requested: int64 (N,) catalog row the epoch asked for.
        substituted: bool (N,).
        plan: the decisions behind them, NumPy arrays.
    """

    images: torch.Tensor
    sizes: torch.Tensor
    boxes: list[torch.Tensor]
    labels: list[torch.Tensor]
    masks: list[torch.Tensor]
    index: torch.Tensor
    requested: torch.Tensor
    substituted: torch.Tensor
    plan: ScenePlan

    def __len__(self) -> int:
        return len(self.index)


def follow_boxes(
    boxes: NDArray[np.float32], old: tuple[int, int], new: tuple[int, int], flip: bool
) -> NDArray[np.float32]:
    """Return boxes (k, 4) of an image of size `old` (width, height) where it is resized to `new`, then mirrored."""
    moved = boxes * np.tile(np.array(new, np.float64) / np.array(old, np.float64), 2)
    if flip:
        moved[:, [0, 2]] = new[0] - moved[:, [2, 0]]
    return moved.astype(np.float32)


def shown_of(boxes: NDArray[np.float32], part: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Return boxes (k, 4) where a part (x0, y0, x1, y1) of their image is shown, clipped: some may lose all area."""
    corner, end = np.array(part[:2] * 2, np.float32), np.array(part[2:] * 2, np.float32)
    return np.clip(boxes, corner, end) - corner


def follow_masks(
    masks: Sequence[dict[str, Any]],
    boxes: NDArray[np.float32],
    new: tuple[int, int],
    flip: bool,
    part: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return masks where their image is resized to `new` (width, height), then mirrored.

    A pixel has the value of the old one that its centre lies in.

    Args:
        masks: k COCO RLEs of the old image.
        boxes: (k, 4) theirs where they end up; pixels further than one outside of them are not looked at.
        new: width and height.
        flip: whether it is mirrored.
        part: what is shown of it, x0, y0, x1, y1, and what boxes are in; None for all.

    Returns:
        uint8 (k, height, width), 1 where the object is, of what is shown.
    """
    from pycocotools import mask as coco_mask

    (width, height), (x0, y0, x1, y1) = new, part or (0, 0, *new)
    out = np.zeros((len(masks), y1 - y0, x1 - x0), np.uint8)
    for i, rle in enumerate(masks):
        old = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
        ys, xs = (((2 * np.arange(n) + 1) * m) // (2 * n) for n, m in ((height, old.shape[0]), (width, old.shape[1])))
        if flip:
            xs = xs[::-1]
        ys, xs = ys[y0:y1], xs[x0:x1]
        low = np.maximum(np.floor(boxes[i, :2]).astype(int) - 1, 0)
        high = np.ceil(boxes[i, 2:]).astype(int) + 1
        near = (slice(low[1], high[1]), slice(low[0], high[0]))
        out[i][near] = old[ys[near[0]]][:, xs[near[1]]]
    return out


def normalised(images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return images uint8 (N, 3, H, W) as backbones take them: ImageNet's mean and deviation, 0 beyond each image.

    Args:
        images: as of `Scenes`.
        sizes: int64 (N, 2) height and width of each.
    """
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    out = images.contiguous().float().mul_(1 / (255 * std)).sub_(mean / std)  # side by side it takes four times as long
    for image, (height, width) in zip(out, sizes.tolist()):
        image[:, height:].zero_()
        image[:, :, width:].zero_()
    return out

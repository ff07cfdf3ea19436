"""Masks of boxes, laid into their image (He et al. 2017, section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


def pasted(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return masks as COCO RLEs of the image: a pixel belongs to one whose bilinear value at its centre is .5 or more.

    Args:
        masks: float32 (k, m, m), from 0 to 1, 0 beyond; a cell's centre lies at its half.
        boxes: float64 (k, 4) in pixels of the image, which they lie in.
        size: height and width of the image.
    """
    from pycocotools import mask as coco_mask

    found = []
    for mask, (x0, y0, x1, y1) in zip(masks.cpu(), boxes.tolist()):
        image = np.zeros(size, np.uint8, order="F")
        left, top = int(x0), int(y0)
        right, lower = min(int(np.ceil(x1)), size[1]), min(int(np.ceil(y1)), size[0])
        across = _of_centres(left, right, x0, x1)
        down = _of_centres(top, lower, y0, y1)
        grid = torch.stack([across[None].expand(len(down), -1), down[:, None].expand(-1, len(across))], -1)
        values = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        image[top:lower, left:right] = (values >= 0.5).numpy()
        rle = coco_mask.encode(image)
        found.append({"size": list(size), "counts": rle["counts"].decode("ascii")})
    return found


def _of_centres(first: int, end: int, low: float, high: float) -> torch.Tensor:
    """Return where the centres of pixels lie in a box, from -1 to 1, float32."""
    centres = torch.arange(first, end, dtype=torch.float64) + 0.5
    return ((centres - low) / max(high - low, 1e-6) * 2 - 1).float()

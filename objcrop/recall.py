"""Recall: how many objects the boxes find, and how well.

As the proposal papers measure it: the share of objects that some box meets with an intersection over union of at least
a half (BING, Cheng et al. 2014, section 4: DR-#WIN), and the mean over objects of the best overlap (ABO in Uijlings et
al. 2013, "Selective Search", section 5.1, there by class), both at a number of boxes an image. Boxes stand as they
are, not rounded to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUDGETS = (1, 10, 100, 1000)
FOUND = 0.5  # intersection over union from which an object counts as found


def budgets(most: int) -> list[int]:
    """Return the numbers of boxes an image to measure at: `BUDGETS`, as far as some image has `most` boxes."""
    return sorted({min(budget, most) for budget in BUDGETS} - {0})


def best_overlaps(objects: NDArray[np.floating], boxes: NDArray[np.floating], at: Sequence[int]) -> NDArray[np.float64]:
    """Return each object's best overlap among the first boxes of its image.

    Args:
        objects: (g, 4) x0, y0, x1, y1, half-open, upright pixels.
        boxes: (k, 4), the best first; k may be 0.
        at: m numbers of boxes to look among, each at least 1; more than k means all.

    Returns:
        float64 (g, m), 0 where there is no box.
    """
    if not len(boxes):
        return np.zeros((len(objects), len(at)))
    import torch
    from torchvision.ops import box_iou

    first = boxes[: max(at)].astype(np.float64)
    overlap = box_iou(torch.from_numpy(objects.astype(np.float64)), torch.from_numpy(first)).numpy()
    best = np.maximum.accumulate(overlap, axis=1)
    return best[:, np.minimum(at, best.shape[1]) - 1]

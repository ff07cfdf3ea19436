"""Coverage: what two views of an image have in common, and whether it is object.

OAC ("Object-Aware Cropping for Self-Supervised Learning"), appendix D: "In expectation, any two crops of a scene will
overlap to some extent. If this intersection overlaps an object, the crops are more likely to contribute to
representations that capture object properties. We measure the fraction of pixels in this intersection that belong to a
ground truth object box". The paper then reports 99 % (obj-scene) and 92.1 % (scene-scene) on COCO, more than a mean
share of pixels can be where objects do not fill the image, and leaves open what the figures count. So the readings are
kept apart here: `PairCoverage` holds what all of them are made of, `stats` gives each its own name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from objcrop.objectness import area, object_share

HELD_PART = 0.25  # of an object's box that both windows must hold to share it; our choice
COVERED = 0.05  # of the intersection that must be object: of pairs that meet, this comes nearest to OAC's figures


class PairCoverage(NamedTuple):
    """Of n pairs of windows.

    Attributes:
        share: float64 (n,) share of the intersection's pixels that belong to an object box, the sentence to the letter;
            0 where the windows do not meet.
        iou: float64 (n,) intersection over union of the two windows.
        of_first: float64 (n,) share of the first window that lies in the second. It is what OAC's "amount of overlap"
            (Figure 7; section 4, "Scene-Scene crop has a higher optimal overlap of 65.2%") seems to be, for of all
            measures tried it alone gives scene-scene crops 65 to 66 %; their IoU is 46 %.
        same_object: bool (n,) whether each of the two windows holds at least `HELD_PART` of the box of one same object.
    """

    share: NDArray[np.float64]
    iou: NDArray[np.float64]
    of_first: NDArray[np.float64]
    same_object: NDArray[np.bool_]


def intersection(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return where integer windows (..., 4) meet, (..., 4); windows that do not meet give one without area."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    return np.concatenate([low, np.maximum(low, high)], axis=-1)


def pair_coverage(table: NDArray[np.int32], pairs: NDArray[np.integer], objects: NDArray[np.integer]) -> PairCoverage:
    """Measure pairs of windows of one image.

    Args:
        table: summed-area table (h + 1, w + 1) of the union of the ground-truth *boxes*, which is what OAC measures
            even where masks are known.
        pairs: integers (n, 2, 4) x0, y0, x1, y1, half-open, upright pixels inside the image.
        objects: integers (g, 4), the boxes of single objects (no crowd regions); g may be 0.
    """
    meet = intersection(pairs[:, 0], pairs[:, 1])
    common, sizes = area(meet), area(pairs)
    held = area(intersection(pairs[:, :, None], objects)) / area(objects)  # (n, 2, g)
    return PairCoverage(
        share=object_share(table, meet),
        iou=common / (sizes.sum(axis=1) - common),
        of_first=common / sizes[:, 0],
        same_object=np.any(np.all(held >= HELD_PART, axis=1), axis=1),
    )

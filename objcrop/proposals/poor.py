"""Boxes of low objectness (CIB Table 2, Poor-Crop), a control: crops that hold too little to learn from."""

from __future__ import annotations

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.objectness import object_mask, object_share, summed_area
from objcrop.proposals.random_boxes import by_chance

CANDIDATES = 400  # random boxes an image to choose from
SCALE = (0.01, 0.15)  # share of the image's area: where an object fills the image, larger boxes all hold too much of it


def poor(catalog: Catalog, *, count: int = 5, share: float = 0.2, seed: int = 0) -> BoxTable:
    """Return random boxes whose share of object pixels is nearest to a given one, 20 % as in the paper.

    Needs ground truth; an image without any gets none. Scores fall with the distance from the share.

    Args:
        catalog: the images, with ground truth.
        count: boxes an image.
        share: of object pixels wanted.
        seed: of the candidates.
    """
    candidates = by_chance(catalog, CANDIDATES, seed, SCALE)
    boxes, scores = [], []
    for row in range(len(catalog)):
        found = object_mask(catalog, row)
        if found is None:
            boxes.append(np.zeros((0, 4), np.float32))
            scores.append(np.zeros(0, np.float32))
            continue
        windows = np.rint(candidates[row]).astype(np.int64)
        off = np.abs(object_share(summed_area(found[0]), windows) - share)
        best = np.argsort(off, kind="stable")[:count]
        boxes.append(windows[best].astype(np.float32))
        scores.append((1 - off[best]).astype(np.float32))
    parameters = {"count": count, "share": share, "seed": seed}
    return BoxTable.from_arrays(catalog, boxes, scores, method="poor", parameters=parameters)

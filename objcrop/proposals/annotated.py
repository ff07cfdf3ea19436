"""Ground-truth boxes, as they are (CIB's GT-Crop) and padded (GTPad-Crop, CIB Table 2)."""

from __future__ import annotations

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError


def gt(catalog: Catalog) -> BoxTable:
    """Return the catalog's boxes; crowd regions are left out, difficult objects kept. All scores are 1."""
    return _annotated(catalog, 0.0, "gt")


def gt_pad(catalog: Catalog, padding: float = 0.5) -> BoxTable:
    """Return the catalog's boxes grown at each of their four sides, clipped to the image.

    Args:
        catalog: the images.
        padding: growth a side, as a share of the box's width or height; CIB does not say which ratio it chose
            (objectness 48.2 %, Table 2).
    """
    if not padding > 0:
        raise UsageError(f"--padding is {padding}, but gt-pad grows boxes: give a share above 0.")
    return _annotated(catalog, padding, "gt-pad")


def _annotated(catalog: Catalog, padding: float, method: str) -> BoxTable:
    truth = catalog.all_annotations()
    if not len(truth.boxes):
        raise ObjcropError(
            f"the catalog of {catalog.root} has no annotated boxes; index it with its annotations, or propose with "
            "another method (grid, random, image)."
        )
    keep = ~truth.crowd
    rows = np.repeat(np.arange(len(catalog)), np.diff(catalog.box_offsets))[keep]
    boxes = truth.boxes[keep]
    limit = np.tile(catalog.sizes[rows], (1, 2)).astype(np.float32)
    margin = padding * (boxes[:, 2:] - boxes[:, :2])
    grown = np.clip(np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1), 0, limit)
    parameters = {"padding": padding} if padding else {}
    ones = np.ones(len(rows), np.float32)
    return BoxTable.from_flat(catalog, rows, grown.astype(np.float32), ones, method, parameters)

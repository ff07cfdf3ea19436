"""Objectness: how much of a crop is object.

CIB ("Coarse Is Better"), Table 2: "'Objectness' is the average ratio of object pixels within each crop." An image's
object pixels are the union of its ground truth: of the pixel masks where every box of the image has one ("We used the
pixel-level groundtruth annotations only in calculating the objectness", ibid.), of the boxes otherwise. Difficult
objects and crowd regions count, for their pixels are object pixels although they are no single object.

Everything is exact on integer pixels: the mask becomes a summed-area table once an image (Crow 1984, "Summed-area
tables for texture mapping"), and any crop is then four look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.dali_pipes.crop_policy import outward
from objcrop.errors import ObjcropError
from objcrop.formats.coco_masks import why_broken

# CIB 5.2: "Poor-Crop (objectness score < 20%), Precise-Crop (objectness score > 80%) and Coarse-Crop (the remaining)".
POOR, PRECISE = 0.2, 0.8


def box_union(boxes: NDArray[np.float32], size: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the pixels that lie in any of these boxes.

    Boxes become integers outwards, as the loaders make them: a crop of a ground-truth box is then all object.

    Args:
        boxes: float32 (k, 4) x0, y0, x1, y1, half-open, upright pixels; k may be 0.
        size: int32 (2,) width and height of the upright image.

    Returns:
        uint8 (height, width), 1 in a box.
    """
    inside = np.zeros((int(size[1]), int(size[0])), np.uint8)
    for x0, y0, x1, y1 in outward(boxes, size[None]).tolist():
        inside[y0:y1, x0:x1] = 1
    return inside


def mask_union(masks: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
    """Return the pixels that lie in any of these COCO RLE masks, which are of one size, as uint8 (height, width)."""
    from pycocotools import mask as coco_mask

    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(list(masks))))


def object_mask(catalog: Catalog, row: int) -> tuple[NDArray[np.uint8], str] | None:
    """Return the object pixels of an image and where they come from.

    Args:
        catalog: the images with their ground truth.
        row: of the catalog.

    Returns:
        uint8 (height, width), 1 on an object, with "masks" or "boxes"; None where the image has no ground truth, since
        an image that nobody annotated cannot be told from an empty one.

    Raises:
        ObjcropError: a mask has another size than its image, or does not fill it; or the image is too large to be one.
    """
    size = catalog.sizes_of([row])[0]
    masks = catalog.masks(row)
    if not masks:
        return None
    if int(size[0]) * int(size[1]) > 2 * (Image.MAX_IMAGE_PIXELS or 2**31):
        raise ObjcropError(
            f"{catalog.path(row)} has {size[0]}×{size[1]} pixels in the catalog, more than Pillow decodes: make the "
            "catalog again with `objcrop index`."
        )
    known = [mask for mask in masks if mask is not None]
    if len(known) < len(masks):
        return box_union(catalog.annotations(row).boxes, size), "boxes"
    refuse_misfits(catalog, row, known)
    return mask_union(known), "masks"


def refuse_misfits(catalog: Catalog, row: int, masks: list[dict[str, Any]]) -> None:
    """Raise an `ObjcropError` where one of an image's masks has another size than it, or does not fill it."""
    width, height = catalog.sizes_of([row])[0].tolist()
    for mask in masks:
        if mask["size"] != [height, width]:
            raise ObjcropError(
                f"{catalog.path(row)} is {width}×{height} pixels, but one of its masks is "
                f"{mask['size'][1]}×{mask['size'][0]}: make the catalog again with `objcrop index`."
            )
    for reason in why_broken(masks, [(width, height)] * len(masks)).values():
        # pycocotools would write past its memory
        raise ObjcropError(f"{catalog.path(row)}: {reason}; make the catalog again with `objcrop index`.")


def summed_area(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the summed-area table of a mask (h, w): int32 (h + 1, w + 1), entry (y, x) the sum of mask[:y, :x]."""
    return np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))


def area(windows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the pixels of integer windows (..., 4), int64 (...)."""
    return (windows[..., 2:] - windows[..., :2]).astype(np.int64).prod(axis=-1)


def object_pixels(table: NDArray[np.int32], windows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count the object pixels of windows.

    Args:
        table: from `summed_area`.
        windows: integers (..., 4) x0, y0, x1, y1, half-open, inside the image; empty ones hold 0 pixels.

    Returns:
        int64 (...).
    """
    x0, y0, x1, y1 = np.moveaxis(windows, -1, 0)
    return (table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]).astype(np.int64)


def object_share(table: NDArray[np.int32], windows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the share of object pixels in windows (..., 4), float64 (...); an empty window has 0 (CIB Table 2)."""
    return object_pixels(table, windows) / np.maximum(area(windows), 1)


def zones(share: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Return which crops are poor, coarse and precise (CIB 5.2), bool (n,) each, of object shares (n,)."""
    poor, precise = share < POOR, share > PRECISE
    return {"poor": poor, "coarse": ~poor & ~precise, "precise": precise}

"""A catalog's masks as label maps: the class of every pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.objectness import refuse_misfits
from objcrop.ssl.transfer.segmenter import IGNORED


def pixel_classes(catalog: Catalog, background: bool) -> list[str]:
    """Return the names of the classes that pixels have.

    Args:
        catalog: the images.
        background: whether pixels of no mask are a class of their own, the first.

    Raises:
        UsageError: there is one class only, or more than a label map can hold.
        ObjcropError: no image has a mask.
    """
    ends = catalog.box_offsets
    masks = catalog._sound_masks(int(ends[0]), int(ends[-1]))
    if masks.null_count == len(masks):
        raise ObjcropError(
            f"the catalog of {catalog.root} has no masks; index it from what has some (cityscapes, voc-segmentation, "
            "coco)."
        )
    classes = ["background"] * background + catalog.classes
    if len(classes) == 1:
        raise UsageError(
            f"the catalog of {catalog.root} has one class only, {classes[0]}: there is nothing to tell apart; with "
            "background=True the pixels of no mask are a second."
        )
    if len(classes) > IGNORED:
        raise UsageError(f"the catalog of {catalog.root} has {len(classes)} classes, more than {IGNORED}.")
    return classes


def label_map(catalog: Catalog, row: int, background: bool) -> npt.NDArray[np.uint8]:
    """Return the class of every pixel of an upright image, uint8 (height, width).

    Of masks that overlap the smaller lies above. Pixels of no mask are `IGNORED`, or background, which is class 0 (the
    catalog's classes follow); but those in the box of an object without a mask are `IGNORED`.

    Args:
        catalog: the images.
        row: which.
        background: whether pixels of no mask have a class.

    Raises:
        ObjcropError: a mask is damaged or does not fit its image.
    """
    from pycocotools import mask as coco_mask

    width, height = catalog.sizes_of([row])[0].tolist()
    truth, masks = catalog.annotations(row), catalog.masks(row)
    labels = np.full((height, width), 0 if background else IGNORED, np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(truth.boxes.tolist()):
        if masks[i] is None:
            labels[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = IGNORED
    known = {i: mask for i, mask in enumerate(masks) if mask is not None}
    refuse_misfits(catalog, row, list(known.values()))
    regions = {i: coco_mask.decode(mask | {"counts": mask["counts"].encode()}) for i, mask in known.items()}
    for i in sorted(regions, key=lambda i: -int(regions[i].sum())):
        labels[regions[i] > 0] = truth.classes[i] + background
    return labels

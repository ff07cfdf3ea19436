"""PASCAL VOC's average precision of detections (Everingham et al. 2010, section 4.2), as Detectron2 computes it.

A detection is right that overlaps an object of its class by more than the threshold, the first time that the object is
found; the object is the one that it overlaps most. Difficult objects and crowds count neither as found nor as missed.

VOC's boxes name their first and last pixel, counted from 1, so that sides have a + 1 in the devkit and in Detectron2.
The catalog's and a detector's are half-open, which is the same box: (xmin - 1, xmax) has the side xmax - xmin + 1.
It differs from Detectron2's in that scores and boxes are not rounded (those go through text files with 3 and 1
decimals), that recall is reached exactly (in floats 3 of 10 objects are not a recall of 0.3), and that classes without
an object count in no mean.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.ssl.evaluation.average_precision import eleven_points
from objcrop.ssl.transfer.detections import Detections

Rule = Literal["11-point", "area"]
OVERLAPS = [percent / 100 for percent in range(50, 100, 5)]


def voc_ap(catalog: Catalog, detections: Detections, rule: Rule = "11-point") -> dict[str, Any]:
    """Return VOC's figures of detections, shares from 0 to 1.

    Args:
        catalog: images, objects and classes.
        detections: of these.
        rule: "11-point", the mean of the highest precision at recall 0, .1, …, 1 or beyond (VOC2007's, the tables' of
            VOC07+12); or "area", under the precision that never rises (since VOC2010).

    Returns:
        ap50, ap75, and ap, the mean over overlaps of .5 to .95; per_class, the ap50 of each, None where there is no
        object.

    Raises:
        ObjcropError: the detections are not of this catalog.
    """
    detections.refuse_misfits(catalog)
    truth = catalog.all_annotations()
    ignored = truth.difficult | truth.crowd
    overlap, nearest = nearest_objects(catalog, detections)
    average = eleven_points if rule == "11-point" else _area
    found = np.full((len(OVERLAPS), len(catalog.classes)), np.nan)
    for label in range(len(catalog.classes)):
        objects = int(((truth.classes == label) & ~ignored).sum())
        these = np.flatnonzero(detections.labels == label)
        these = these[np.argsort(-detections.scores[these], kind="stable")]
        for i, least in enumerate(OVERLAPS if objects else ()):
            right, wrong = _judged(overlap[these] > least, nearest[these], ignored)
            hits = np.cumsum(right, dtype=np.int64)
            found[i, label] = average(hits, hits + np.cumsum(wrong, dtype=np.int64), objects)
    of_each = [None if np.isnan(one) else one for one in found[0].tolist()]
    means = [None if np.isnan(one).all() else float(np.nanmean(one)) for one in (found, found[0], found[5])]
    return dict(zip(("ap", "ap50", "ap75"), means)) | {"per_class": dict(zip(catalog.classes, of_each, strict=True))}


def nearest_objects(catalog: Catalog, detections: Detections) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return for each detection the largest overlap with an object of its class, and which of all objects that is.

    Overlap is intersection over union; 0 and object 0 where the image has none of the class.
    """
    import torch
    from torchvision.ops import box_iou

    best, nearest = np.zeros(len(detections)), np.zeros(len(detections), np.int64)
    truth, ends = catalog.all_annotations(), np.searchsorted(detections.row, np.arange(len(catalog) + 1))
    for row, (begin, end) in enumerate(zip(catalog.box_offsets[:-1].tolist(), catalog.box_offsets[1:].tolist())):
        first, last = ends[row : row + 2]
        if begin == end or first == last:
            continue
        boxes, objects = detections.boxes[first:last], truth.boxes[begin:end].astype(np.float64)
        overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(objects)).numpy()
        overlap[detections.labels[first:last, None] != truth.classes[begin:end]] = 0
        best[first:last], nearest[first:last] = overlap.max(1), overlap.argmax(1) + begin
    return best, nearest


def _judged(
    overlaps: npt.NDArray[np.bool_], nearest: npt.NDArray[np.int64], ignored: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which detections, the surest first, are right and which are wrong."""
    hidden = overlaps & ignored[nearest]
    finds = np.flatnonzero(overlaps & ~hidden)
    right = np.zeros(len(overlaps), bool)
    right[finds[np.unique(nearest[finds], return_index=True)[1]]] = True
    return right, ~right & ~hidden


def _area(found: npt.NDArray[np.int64], looked_at: npt.NDArray[np.int64], objects: int) -> float:
    """Return the area under the precision that never rises with recall; arguments as of `eleven_points`."""
    precision = np.maximum.accumulate((found / np.maximum(looked_at, 1))[::-1])[::-1]
    return float((np.diff(found, prepend=0) * precision).sum() / objects)

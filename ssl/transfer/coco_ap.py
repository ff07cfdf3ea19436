"""COCO's average precision of detections, by pycocotools (cocodataset.org/#detection-eval).

What a catalog does not keep is the `area` that COCO's annotations state. Objects are small, medium and large by the
pixels of their masks, or where they have none by their boxes; COCO's own areas are those of polygons, so that an object
near a limit (32² and 96² pixels) may change sides and the figures by size differ in the last digits. All else is equal.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.objectness import refuse_misfits
from objcrop.ssl.transfer.detections import Detections

# pycocotools' 12 numbers, in its order.
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


class CocoAP(NamedTuple):
    """COCO's figures, and the curves that they are means of.

    figures: ap (over overlaps of .5 to .95), ap50, ap75, ap_small, ap_medium, ap_large; ar1, ar10 and ar100 (recall by
    so many detections of a class on an image), ar_small, ar_medium, ar_large; per_class, the ap of each: shares from 0
    to 1, None where there is no object. precision: float64 (10, 101, C) at each overlap, at recall 0, .01, …, 1, of
    each class; NaN where there is no object.
    """

    figures: dict[str, Any]
    precision: npt.NDArray[np.float64]


def coco_ap(catalog: Catalog, detections: Detections, of: Literal["boxes", "masks"] = "boxes") -> CocoAP:
    """Judge detections as COCO does.

    All images of the catalog count, those without objects too. A crowd may be found as often as one likes. Where masks
    are judged, an object that has none is a crowd as large as its box, for nothing is known of it, and sizes are those
    of masks. Difficult objects, which COCO does not know, are as others.

    Args:
        catalog: images, objects and classes.
        detections: of these; of each class the 100 surest of an image count.
        of: what must overlap.

    Raises:
        ObjcropError: the detections are not of this catalog or have no masks, or a mask is damaged.
    """
    from pycocotools.cocoeval import COCOeval

    detections.refuse_misfits(catalog)
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(*_as_coco(catalog, detections, of == "masks"), "segm" if of == "masks" else "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precision = judged.eval["precision"][..., 0, -1]  # of objects of all sizes, by all detections
    precision = np.where(precision < 0, np.nan, precision)
    figures: dict[str, Any] = {
        name: None if value < 0 else value for name, value in zip(FIGURES, judged.stats.tolist(), strict=True)
    }
    of_each = [None if np.isnan(curves).any() else float(curves.mean()) for curves in np.moveaxis(precision, 2, 0)]
    return CocoAP(figures | {"per_class": dict(zip(catalog.classes, of_each, strict=True))}, precision)


def _as_coco(catalog: Catalog, detections: Detections, masked: bool) -> tuple[Any, Any]:
    """Return objects and detections as pycocotools takes them; ids of images are rows, of classes their positions."""
    from pycocotools import mask as coco_mask

    if masked and detections.masks is None:
        raise ObjcropError("these detections have no masks; judge their boxes.")
    objects: list[dict[str, Any]] = []
    for row in range(len(catalog)):
        truth, masks = catalog.annotations(row), catalog.masks(row)
        refuse_misfits(catalog, row, [mask for mask in masks if mask is not None])
        width, height = catalog.sizes_of([row])[0].tolist()
        for i, box in enumerate(_bboxes(truth.boxes)):
            mask, crowd = masks[i], bool(truth.crowd[i])
            if masked and mask is None:
                mask, crowd = coco_mask.frPyObjects(np.array([box]), height, width)[0], True
            one = {"image_id": row, "category_id": int(truth.classes[i]), "iscrowd": int(crowd)}
            objects.append(one | _shape(box, mask))
    found: list[dict[str, Any]] = []
    for i, box in enumerate(_bboxes(detections.boxes)):
        one = {"image_id": int(detections.row[i]), "category_id": int(detections.labels[i]), "iscrowd": 0}
        mask = detections.masks[i] if masked and detections.masks is not None else None
        found.append(one | {"score": float(detections.scores[i])} | _shape(box, mask))
    return _coco(catalog, objects), _coco(catalog, found)


def _bboxes(boxes: npt.NDArray[Any]) -> list[list[float]]:
    """Return x, y, width and height of boxes."""
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], 1).tolist()


def _shape(box: list[float], mask: dict[str, Any] | None) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    area = box[2] * box[3] if mask is None else float(coco_mask.area(mask))
    return {"bbox": box, "segmentation": mask, "area": area}


def _coco(catalog: Catalog, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = {
        "images": [
            {"id": row, "width": width, "height": height} for row, (width, height) in enumerate(catalog.sizes.tolist())
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(catalog.classes)],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],  # 0 would be none
    }
    made.createIndex()
    return made

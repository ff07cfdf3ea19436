"""Detections judged in every way that tables ask for, kept as a file, and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from objcrop.catalog import Catalog
from objcrop.ssl.transfer.coco_ap import coco_ap
from objcrop.ssl.transfer.detected_sheet import draw_detected
from objcrop.ssl.transfer.detections import Detections
from objcrop.ssl.transfer.pictures import draw_precision_recall
from objcrop.ssl.transfer.voc_ap import voc_ap


def judged_detections(images: Catalog, found: Detections, folder: Path) -> dict[str, Any]:
    """Return COCO's figures of boxes and of masks ("mask_…"), and VOC's of boxes by both rules.

    Args:
        images: with their objects.
        found: on these.
        folder: gets detections.json (COCO's results), precision_recall.png and detected.png, of masks
            mask_precision_recall.png too.
    """
    found.save(folder / "detections.json", images)
    figures, precision = coco_ap(images, found)
    draw_precision_recall(precision, images.classes, folder / "precision_recall.png")
    if found.masks is not None:
        of_masks, precision = coco_ap(images, found, "masks")
        draw_precision_recall(precision, images.classes, folder / "mask_precision_recall.png")
        figures |= {f"mask_{name}": figure for name, figure in of_masks.items()}
    figures |= {f"voc07_{name}": figure for name, figure in voc_ap(images, found).items()}
    figures |= {f"voc_{name}": figure for name, figure in voc_ap(images, found, "area").items()}
    draw_detected(images, found, folder / "detected.png")
    return figures

"""Label maps, one class id a pixel, as a catalog holds them: each class's pixels in an image are one mask.

The mask has the tight box of those pixels and the crowd flag, COCO's mark of a region that is no single object, so that
boxes drawn from annotations leave it out. Pixels that nobody labelled are in no mask.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.exif import Header, why_unreadable
from objcrop.formats import FlatBoxes, IndexReport, catalog_of, places_of
from objcrop.formats.headers import read_headers
from objcrop.formats.plain_values import BadValue
from objcrop.formats.source import Source
from objcrop.progress import tracked
from objcrop.read_file import read_file


def catalog_of_label_maps(
    source: Source,
    base: str,
    map_of: Mapping[str, str],
    classes: Sequence[str],
    class_of: Mapping[int, int | None],
    report: IndexReport,
) -> Catalog:
    """Read the headers of images and the classes of their pixels.

    Args:
        source: its limit, verify and strict.
        base: image folder.
        map_of: path of each image's label map, by key; the map is in the frame that the image is stored in.
        classes: class names in the catalog's order.
        class_of: the class of each id that a label map may hold; None where such pixels have none.
        report: an image is left out and listed where its label map is not there, of another size, or holds another id.

    Raises:
        ObjcropError: no image is left, or something cannot be used and the source is strict.
    """
    keys = sorted(map_of)[: source.limit]
    headers = read_headers(places_of(base, keys, None), source.verify)
    kept: list[str] = []
    kept_headers: list[Header | str] = []
    boxes = FlatBoxes([], [], [], [], [], [], lambda at: f"{at[0]} class {at[1]}", [])
    for key, header in tracked(zip(keys, headers, strict=True), len(keys), "reading label maps"):
        regions = []
        if isinstance(header, Header):  # of the others `catalog_of` says why
            try:
                labels = _read_map(map_of[key], (header.width, header.height))
                regions = _regions(labels, class_of)
            except BadValue as error:
                report.leave_out_file(key, f"its label map {error}")
                continue
        for label, corners, rle in regions:
            boxes.image.append(len(kept))
            boxes.corners.append(corners)
            boxes.classes.append(label)
            boxes.difficult.append(False)
            boxes.crowd.append(True)
            boxes.place.append((key, classes[label]))
            boxes.segmentations.append(rle)  # type: ignore[union-attr]
        kept.append(key)
        kept_headers.append(header)
    return catalog_of(base, kept, report, verify=source.verify, classes=classes, boxes=boxes, headers=kept_headers)


def _read_map(path: str, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the ids (H, W) in a file."""
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            if image.size != size:
                raise BadValue(f"is {image.width}×{image.height} pixels, the image {size[0]}×{size[1]}")
            ids = np.asarray(image)
    except FileNotFoundError:
        raise BadValue(f"{path} is not there") from None
    except BadValue:
        raise
    except Exception as error:  # a damaged file can raise anything in Pillow
        raise BadValue(f"{path} cannot be read ({why_unreadable(error)})") from None
    if ids.ndim != 2 or ids.dtype.kind not in "buI":
        raise BadValue(f"{path} is a picture in colours, where each pixel should be the number of its class")
    return ids.astype(np.int64)


def _regions(
    labels: npt.NDArray[np.int64], class_of: Mapping[int, int | None]
) -> list[tuple[int, tuple[float, float, float, float], dict[str, Any]]]:
    """Return class, corners and RLE of every class in a label map (H, W), in the order of the classes."""
    from pycocotools import mask as coco_mask

    found: dict[int, npt.NDArray[np.bool_]] = {}
    for number in np.unique(labels).tolist():
        if number not in class_of:
            raise BadValue(f"holds the id {number}, which is no class")
        label = class_of[number]
        if label is not None:
            region = labels == number
            found[label] = found[label] | region if label in found else region
    regions = []
    for label in sorted(found):
        rle = coco_mask.encode(np.asfortranarray(found[label], dtype=np.uint8))
        x, y, width, height = coco_mask.toBbox(rle).tolist()
        counts = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        regions.append((label, (x, y, x + width, y + height), counts))
    return regions

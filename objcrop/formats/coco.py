"""COCO instances: one JSON with images, annotations and categories (Lin et al. 2014, cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import os
import posixpath
from itertools import pairwise
from typing import Any

import numpy as np

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.exif import upright_array
from objcrop.formats import FlatBoxes, IndexReport, StrPath, catalog_of, folder_at


def read_coco(
    source: StrPath,
    *,
    annotations: StrPath | None = None,
    root: StrPath | None = None,
    limit: int | None = None,
    verify: bool = False,
) -> tuple[Catalog, IndexReport]:
    """Index the images that a COCO instances file names.

    Category ids become 0..C-1 in their order. `iscrowd` and an optional `difficult` are kept; polygons and RLE become
    masks. Files that the JSON does not name are no part of the data set.

    Args:
        source: the JSON, or a folder with `instances.json` in it.
        annotations: the JSON, when `source` is a folder and the JSON is elsewhere.
        root: image folder; left out, `images/` beside the JSON (or in `source`), or else that folder itself.
        limit: take the first so many images, in the order of their keys.
        verify: decode every image.

    Raises:
        ObjcropError: a file or folder is missing, the JSON is broken (with line and column) or lacks something, a file
            name comes twice, or no image is left.
    """
    folder = str(source) if os.path.isdir(source) else os.path.dirname(os.path.abspath(source))
    file = os.fspath(annotations or (os.path.join(folder, "instances.json") if os.path.isdir(source) else source))
    content = _read_json(file)
    if root is None:
        inner = os.path.join(folder, "images")
        root = inner if os.path.isdir(inner) else folder
    base = folder_at(root, "image folder")
    report = IndexReport()

    classes, class_of = _categories(content["categories"], file)
    named = [(_key(entry, i, file), entry) for i, entry in enumerate(content["images"])]
    named.sort(key=lambda pair: pair[0])
    for (key, _), (following, _) in pairwise(named):
        if key == following:
            raise ObjcropError(f"{file} names the image '{key}' twice; every file_name must be there once.")
    taken = named[:limit]
    position = {entry["id"]: i for i, (_, entry) in enumerate(taken)}
    known = {entry["id"] for _, entry in named}
    if len(known) < len(named):
        raise ObjcropError(f"{file} gives two images the same id; every image id must be there once.")

    flat = FlatBoxes([], [], [], [], [])
    shapes: list[Any] = []
    unknown: set[Any] = set()
    for i, note in enumerate(content["annotations"]):
        at = position.get(_field(note, "image_id", "annotations", i, file))
        if at is None:
            if note["image_id"] not in known:
                unknown.add(note["image_id"])
            continue
        category = _field(note, "category_id", "annotations", i, file)
        if category not in class_of:
            raise ObjcropError(f"{file}: annotations[{i}] has category_id {category}, which is not listed; correct it.")
        flat.image.append(at)
        flat.corners.append(_corners(note, i, file))
        flat.classes.append(class_of[category])
        flat.difficult.append(bool(note.get("difficult", 0)))
        flat.crowd.append(bool(note.get("iscrowd", 0)))
        shapes.append(note.get("segmentation"))
    report.missing_annotated += [f"image id {number}" for number in sorted(unknown, key=str)]

    def mask(i: int, size: tuple[int, int], orientation: int) -> str | None:
        return upright_rle(shapes[i], size, orientation)

    catalog = catalog_of(
        base,
        [key for key, _ in taken],
        report,
        verify=verify,
        classes=classes,
        boxes=flat._replace(mask=mask if any(shapes) else None),
        stated_sizes=[(entry.get("width") or 0, entry.get("height") or 0) for _, entry in taken],
    )
    return catalog, report


def upright_rle(segmentation: Any, size: tuple[int, int], orientation: int) -> str | None:
    """Return a COCO segmentation as upright, compressed RLE: JSON of {"size": [height, width], "counts": str}.

    Args:
        segmentation: polygons (list of x,y lists, pixels), or an RLE dict, compressed or not; may be empty or None.
        size: (width, height) of the frame the segmentation is in.
        orientation: EXIF orientation that turns this frame upright.

    Returns:
        The JSON, or None where there is no mask, or one that is broken or made for another size.
    """
    from pycocotools import mask as coco_mask

    width, height = size
    try:
        if isinstance(segmentation, dict):
            rle = segmentation
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, height, width)
            if list(segmentation["size"]) != [height, width]:
                return None
        else:
            polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
            if not polygons:
                return None
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        if orientation != 1:
            rle = coco_mask.encode(np.asfortranarray(upright_array(coco_mask.decode(rle), orientation)))
    except (KeyError, TypeError, ValueError):
        return None
    counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
    return json.dumps({"size": list(rle["size"]), "counts": counts}, separators=(",", ":"))


def _read_json(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ObjcropError(f"{file} is broken JSON at {where} ({error.msg}); fetch or write it again.") from None
    except UnicodeDecodeError as error:
        raise ObjcropError(f"{file} is not UTF-8 text at byte {error.start}; is it a JSON file?") from None
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise ObjcropError(f"The annotations {file} cannot be read ({reason}); say with --annotations.") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ObjcropError(f"{file} has no list '{part}', so it is not a COCO instances file; check --format.")
    return content


def _field(entry: Any, name: str, part: str, i: int, file: str) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(name), (int, str)):
        raise ObjcropError(f"{file}: {part}[{i}] has no usable '{name}'; correct that entry.")
    return entry[name]


def _key(entry: Any, i: int, file: str) -> str:
    _field(entry, "id", "images", i, file)
    key = posixpath.normpath(str(_field(entry, "file_name", "images", i, file)))
    if posixpath.isabs(key) or key.startswith("../") or key in ("..", "."):
        raise ObjcropError(f"{file}: images[{i}] has the file_name '{key}', which must lie below the image folder.")
    return key


def _categories(entries: list[Any], file: str) -> tuple[list[str], dict[Any, int]]:
    names = {}
    for i, entry in enumerate(entries):
        number = _field(entry, "id", "categories", i, file)
        if number in names:
            raise ObjcropError(f"{file} has the category id {number} twice; every category id must be there once.")
        names[number] = str(_field(entry, "name", "categories", i, file))
    if len(set(names.values())) < len(names):
        name = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ObjcropError(f"{file} has the category name '{name}' twice; every name must be there once.")
    ids = sorted(names)
    return [names[number] for number in ids], {number: c for c, number in enumerate(ids)}


def _corners(note: dict[str, Any], i: int, file: str) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float("nan") if value is None else float(value) for value in note["bbox"])
    except (KeyError, TypeError, ValueError):
        raise ObjcropError(f"{file}: annotations[{i}] has no 'bbox' of four numbers; correct that entry.") from None
    return x, y, x + width, y + height
